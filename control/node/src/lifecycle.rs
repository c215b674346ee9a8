//! How a process starts, drains and ends, and how it tells systemd.

use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Requests in flight get this long to finish once a node drains.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// Held by whoever ends a role; dropping it ends the role too.
#[derive(Debug)]
pub struct Stop(watch::Sender<bool>);

/// Seen by everything that has to end.
#[derive(Clone, Debug)]
pub struct Stopping(watch::Receiver<bool>);

#[must_use]
pub fn stop_pair() -> (Stop, Stopping) {
    let (s, r) = watch::channel(false);
    (Stop(s), Stopping(r))
}

impl Stop {
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stopping {
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Until the role is to end.
    pub async fn stopped(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// Until SIGINT or SIGTERM.
///
/// # Errors
/// The handlers cannot be set.
pub async fn until_signal() -> std::io::Result<&'static str> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    })
}

/// Tells systemd (`Type=notify`) a state such as `READY=1`; without systemd it does nothing.
pub fn notify_systemd(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = (|| {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name)?,
            None => std::os::unix::net::SocketAddr::from_pathname(&path)?,
        };
        std::os::unix::net::UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)
    })();
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
