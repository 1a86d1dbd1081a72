//! A source of a test's own: an HTTP server in the test's process, reached from containers.

use axum::Router;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::instance::Instance;

/// A server that lives as long as this.
pub struct Source {
    /// Where containers of the instance find it: `http://…:port`.
    pub url: String,
    _runtime: Runtime,
}

impl Source {
    /// Serves a router to the containers of an instance.
    pub fn start(instance: &Instance, router: Router) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let listener = runtime
            .block_on(TcpListener::bind("0.0.0.0:0"))
            .expect("a port is free");
        let port = listener.local_addr().expect("it has an address").port();
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            url: format!("http://{}:{port}", instance.gateway()),
            _runtime: runtime,
        }
    }
}
