//! A TCP proxy that can be cut, swallow everything, or be slow: a network to break.
//!
//! # Invariants
//!
//! - `what_a_black_hole_held_back_is_delivered_late`: as in a real network, nothing that was
//!   accepted is lost while the connection lives.
//! - `a_cut_ends_what_is_open_and_refuses_what_is_new`.

use std::net::{SocketAddr, TcpListener as Bound};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The most that is read at once. Small, so that a slow network is slow for large messages too.
const CHUNK_BYTES: usize = 16 << 10;

/// How the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Everything passes.
    Open,
    /// What is open is closed; what is new is closed at once.
    Cut,
    /// Connections stay, and nothing passes, not even that they end.
    BlackHole,
    /// Each chunk takes this long.
    Slow(Duration),
}

/// A proxy on a thread of its own. Dropped, it ends.
pub struct Proxy {
    /// Where it listens, on all addresses.
    pub port: u16,
    condition: watch::Sender<Condition>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens at a free port, and leads to `target`.
    pub fn start(target: &str) -> Self {
        let target: SocketAddr = target.parse().expect("an address and a port");
        let listener = Bound::bind("0.0.0.0:0").expect("a port is free");
        listener
            .set_nonblocking(true)
            .expect("a listener can be made non-blocking");
        let port = listener.local_addr().expect("it has an address").port();
        let (condition, receiver) = watch::channel(Condition::Open);
        let thread = std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime can be made");
                runtime.block_on(serve(listener, target, receiver));
            })
            .expect("a thread can be started");
        Self {
            port,
            condition,
            thread: Some(thread),
        }
    }

    /// Makes the network so.
    pub fn set(&self, condition: Condition) {
        self.condition.send_replace(condition);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The thread ends when nobody can change the condition any more.
        self.condition = watch::channel(Condition::Cut).0;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn serve(listener: Bound, target: SocketAddr, mut condition: watch::Receiver<Condition>) {
    let listener = TcpListener::from_std(listener).expect("it is a listener");
    let mut connections = JoinSet::new();
    loop {
        // Cancel-safe: accepting, joining and waiting for a change lose nothing.
        tokio::select! {
            accepted = listener.accept() => {
                // A client that is gone already needs no connection.
                let Ok((client, _)) = accepted else { continue };
                if *condition.borrow() != Condition::Cut {
                    connections.spawn(connection(client, target, condition.clone()));
                }
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            changed = condition.changed() => if changed.is_err() { return },
        }
    }
}

/// Carries one connection until either side ends it, or the network is cut.
async fn connection(
    client: TcpStream,
    target: SocketAddr,
    mut condition: watch::Receiver<Condition>,
) {
    if passable(&mut condition).await.is_none() {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    // Small frames are not to wait for more of them; a connection that is broken says so later.
    drop(client.set_nodelay(true));
    drop(server.set_nodelay(true));
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    // Cancel-safe: when one direction ends, the connection does.
    tokio::select! {
        () = pump(client_reads, server_writes, condition.clone()) => {}
        () = pump(server_reads, client_writes, condition.clone()) => {}
        () = cut(condition) => {}
    }
}

/// Waits until something can pass, and says how fast; none if the network is cut.
async fn passable(condition: &mut watch::Receiver<Condition>) -> Option<Duration> {
    loop {
        match *condition.borrow_and_update() {
            Condition::Open => return Some(Duration::ZERO),
            Condition::Slow(delay) => return Some(delay),
            Condition::Cut => return None,
            Condition::BlackHole => {}
        }
        condition.changed().await.ok()?;
    }
}

async fn cut(mut condition: watch::Receiver<Condition>) {
    // Nobody left to change it means that the proxy is going.
    drop(
        condition
            .wait_for(|condition| *condition == Condition::Cut)
            .await,
    );
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut condition: watch::Receiver<Condition>,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let Ok(count) = from.read(&mut chunk).await else {
            return;
        };
        // What came in before or while the network was swallowing waits here; the end does, too.
        let Some(delay) = passable(&mut condition).await else {
            return;
        };
        if count == 0 {
            return;
        }
        tokio::time::sleep(delay).await;
        if to.write_all(&chunk[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;

    /// A server that says back what it hears, and how to reach it through a proxy.
    fn echo() -> (Proxy, String) {
        let listener = Bound::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(&listener.local_addr().unwrap().to_string());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut reader = stream.try_clone().unwrap();
                    drop(std::io::copy(&mut reader, &mut stream));
                });
            }
        });
        let address = format!("127.0.0.1:{}", proxy.port);
        (proxy, address)
    }

    fn connect(address: &str) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        stream
    }

    fn say(stream: &mut TcpStream, word: &str) -> Option<String> {
        stream.write_all(word.as_bytes()).ok()?;
        hear(stream, word.len())
    }

    fn hear(stream: &mut TcpStream, count: usize) -> Option<String> {
        let mut heard = vec![0; count];
        stream.read_exact(&mut heard).ok()?;
        String::from_utf8(heard).ok()
    }

    #[test]
    fn what_a_black_hole_held_back_is_delivered_late() {
        let (proxy, address) = echo();
        let mut stream = connect(&address);
        assert_eq!(say(&mut stream, "one").as_deref(), Some("one"));
        proxy.set(Condition::BlackHole);
        assert_eq!(say(&mut stream, "two"), None, "nothing passes");
        proxy.set(Condition::Slow(Duration::from_millis(10)));
        assert_eq!(hear(&mut stream, 3).as_deref(), Some("two"));
    }

    #[test]
    fn a_cut_ends_what_is_open_and_refuses_what_is_new() {
        let (proxy, address) = echo();
        let mut stream = connect(&address);
        assert_eq!(say(&mut stream, "one").as_deref(), Some("one"));
        proxy.set(Condition::Cut);
        assert_eq!(hear(&mut stream, 1), None, "it was closed");
        assert_eq!(say(&mut connect(&address), "two"), None);
        proxy.set(Condition::Open);
        assert_eq!(
            say(&mut connect(&address), "three").as_deref(),
            Some("three")
        );
    }
}
