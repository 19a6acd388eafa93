//! `/livez`, `/readyz` and `/metrics`. Called by the kubelet and by Prometheus; it never waits for anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// What is shown.
#[derive(Clone)]
pub struct Health {
    metrics: Metrics,
    ready: Arc<AtomicBool>,
}

impl Health {
    /// Not ready yet.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, ready: Arc::default() }
    }

    /// From now on ready: the API server answers, and this replica leads or stands by.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Serves until the program ends.
    pub async fn serve(self, address: SocketAddr) -> anyhow::Result<()> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        axum::serve(listener, self.router()).await.context("serving /livez, /readyz and /metrics")
    }

    fn router(self) -> Router {
        Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self)
    }
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    if health.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting: waiting for the API server and the custom resource definitions\n")
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], health.metrics.text())
}
