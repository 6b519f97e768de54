//! Connections: taken on while there are not too many, ended when the server is, given little time to say
//! what they want.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Server;

/// Connections at a time.
const MOST: usize = 1024;
/// What a client has for the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Bytes of the head of a request.
const HEAD_BYTES: usize = 64 << 10;

/// Serves until a signal comes.
pub async fn serve(server: Arc<Server>, listening: impl FnOnce(SocketAddr)) -> std::io::Result<()> {
    let address = server.config.address;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| {
        std::io::Error::new(error.kind(), format!("{address} cannot be listened at: {error}"))
    })?;
    let mut ended = std::pin::pin!(end()?);
    // What is wrong with the only model is told at once.
    if server.config.any_name {
        let loaded = tokio::select! {
            loaded = server.registry.get("") => loaded,
            () = &mut ended => return Ok(()),
        };
        loaded.map_err(|error| std::io::Error::other(error.message))?;
    }
    listening(listener.local_addr()?);
    let router = server.router();
    let places = Arc::new(Semaphore::new(MOST));
    let open = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, taken) = tokio::select! {
            next = next => next,
            () = &mut ended => break,
        };
        let Some(stream) = accepted(taken).await else { continue };
        let connection =
            http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = open.watch(connection);
        tokio::spawn(async move {
            // What a client breaks off is its own affair.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    drain(&server, open).await;
    Ok(())
}

/// A connection, without the system's delay of small packets.
async fn accepted(taken: std::io::Result<(TcpStream, SocketAddr)>) -> Option<TcpStream> {
    match taken {
        Ok((stream, _)) => {
            let _ = stream.set_nodelay(true);
            Some(stream)
        }
        // No more files may be open, or the client has gone again.
        Err(_) => {
            sleep(Duration::from_millis(20)).await;
            None
        }
    }
}

/// Lets running answers end within the time that they have, and cuts the others.
async fn drain(server: &Server, open: GracefulShutdown) {
    let ended = timeout(server.config.drain, open.shutdown()).await;
    server.registry.close();
    let cut = async {
        while !server.registry.is_quiet() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    // A pass over a streamed model takes long; the process ends in its midst then.
    let _ = timeout(Duration::from_secs(if ended.is_ok() { 5 } else { 1 }), cut).await;
    // What was cut has to be told of.
    if ended.is_err() {
        sleep(Duration::from_millis(200)).await;
    }
}

/// Ends when a signal asks the process to.
#[cfg(unix)]
fn end() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// The same. Where a window is closed or the machine shut down, Windows gives some seconds.
#[cfg(windows)]
fn end() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};
    let (mut interrupt, mut stop) = (ctrl_c()?, ctrl_break()?);
    let (mut close, mut shutdown) = (ctrl_close()?, ctrl_shutdown()?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = stop.recv() => {}
            _ = close.recv() => {}
            _ = shutdown.recv() => {}
        }
    })
}
