//! `/healthz` and `/metrics`, for whoever probes and scrapes: one short answer a connection.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::metrics::Metrics;

/// Clients at once; a probe and a scraper are usual.
const CLIENTS_MAX: usize = 16;
/// A request line and some headers.
const HEAD_MAX: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens the port; what is returned answers for as long as it is polled.
pub async fn serve(listen: SocketAddr, metrics: Arc<Metrics>) -> Result<impl Future<Output = ()>> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen for probes on {listen}; choose another address with --listen"))?;
    tracing::info!(address = %listener.local_addr()?, "listening for probes and scrapers");
    let turns = Arc::new(Semaphore::new(CLIENTS_MAX));
    Ok(async move {
        loop {
            let Ok(turn) = turns.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                // Out of files for a moment.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let metrics = metrics.clone();
            tokio::spawn(async move {
                let _turn = turn;
                // Who is too slow, or gone, asks again.
                let _ = timeout(PATIENCE, answer(stream, &metrics)).await;
            });
        }
    })
}

async fn answer(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= HEAD_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let line = String::from_utf8_lossy(&head);
    let (status, body) = match line.split(' ').take(2).collect::<Vec<_>>()[..] {
        ["GET", "/healthz"] => match metrics.health() {
            Ok(()) => ("200 OK", "ok\n".to_owned()),
            Err(why) => ("503 Service Unavailable", format!("{why}\n")),
        },
        ["GET", "/metrics"] => ("200 OK", metrics.text()),
        ["GET", _] => ("404 Not Found", "it has /healthz and /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
