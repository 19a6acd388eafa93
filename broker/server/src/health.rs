//! What an orchestrator and Prometheus ask a node over HTTP: `/livez`, `/readyz`, `/metrics`.
//!
//! It runs on the control thread's runtime, so that a busy data path or a slow disk starves no probe. It never changes anything.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse, routing::get,
};
use tokio::{net::TcpListener, sync::watch};

/// What the page is made from.
pub(crate) trait HealthSource: Send + Sync + 'static {
    /// `Ok` once the broker is registered and not fenced; else why not, in words.
    fn readiness(&self) -> Result<(), String>;
    /// The metrics page.
    fn metrics_page(&self) -> String;
}

/// Binds the health listener, of the form `HOST:PORT`; port 0 takes a free one.
pub(crate) async fn bind(address: &str) -> io::Result<(TcpListener, SocketAddr)> {
    let address = address.strip_prefix(':').map_or_else(|| address.to_owned(), |port| format!("[::]:{port}"));
    let listener = TcpListener::bind(&address).await?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Answers until `stopped` turns true.
pub(crate) async fn serve(listener: TcpListener, source: Arc<dyn HealthSource>, mut stopped: watch::Receiver<bool>) {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(source);
    let stop = async move {
        // An error means that the node is gone altogether, which ends this as well.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "the health listener ended");
    }
}

async fn readyz(State(source): State<Arc<dyn HealthSource>>) -> (StatusCode, String) {
    match source.readiness() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn metrics(State(source): State<Arc<dyn HealthSource>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], source.metrics_page())
}
