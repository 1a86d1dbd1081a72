//! A TCP proxy whose connections can be cut.

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A proxy between a client and a broker.
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) port: u16,
    open: Arc<watch::Sender<bool>>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port and leads to `target` (`host:port`).
    pub(crate) async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = Arc::new(watch::Sender::new(true));
        let mut tasks = JoinSet::new();
        let state = Arc::clone(&open);
        tasks.spawn(async move {
            let mut streams = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let mut state = state.subscribe();
                let target = target.clone();
                streams.spawn(async move {
                    if *state.borrow() {
                        // Cancel-safe: cutting a stream off is the purpose.
                        tokio::select! {
                            () = carry(client, &target) => {}
                            cut = state.wait_for(|open| !open) => drop(cut),
                        }
                    }
                });
            }
        });
        Self {
            port,
            open,
            _tasks: tasks,
        }
    }

    /// Cuts all connections, and every new one at once.
    pub(crate) fn cut(&self) {
        self.open.send_replace(false);
    }

    /// Lets new connections through again.
    pub(crate) fn mend(&self) {
        self.open.send_replace(true);
    }
}

async fn carry(mut client: TcpStream, target: &str) {
    if let Ok(mut server) = TcpStream::connect(target).await {
        // An end that is cut is what the tests are about.
        drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
    }
}
