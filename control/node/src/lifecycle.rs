//! How a process starts, drains and ends, and how it tells systemd.

use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Requests in flight get this long to finish once a node drains.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// Held by whoever ends a role; dropping it ends the role too.
#[derive(Debug)]
pub struct Stop {
    stop: watch::Sender<bool>,
    reload: watch::Sender<u64>,
}

/// Seen by everything that has to end.
#[derive(Clone, Debug)]
pub struct Stopping {
    stop: watch::Receiver<bool>,
    reload: watch::Receiver<u64>,
}

#[must_use]
pub fn stop_pair() -> (Stop, Stopping) {
    let ((stop, stopping), (reload, reloading)) = (watch::channel(false), watch::channel(0));
    (Stop { stop, reload }, Stopping { stop: stopping, reload: reloading })
}

impl Stop {
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// The settings are to be read again.
    pub fn reload(&self) {
        self.reload.send_modify(|times| *times += 1);
    }
}

impl Stopping {
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.stop.borrow() || self.stop.has_changed().is_err()
    }

    /// Until the role is to end.
    pub async fn stopped(&mut self) {
        let _ = self.stop.wait_for(|stop| *stop).await;
    }

    /// Until the settings are to be read again; `false` once nobody can ask for it any more.
    pub async fn reload(&mut self) -> bool {
        self.reload.changed().await.is_ok()
    }
}

/// What an operator, or systemd, says to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// SIGINT or SIGTERM.
    End(&'static str),
    /// SIGHUP.
    Reload,
}

/// The signals of a process, from the moment that this is made: before, they end it.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// # Errors
    /// The handlers cannot be set.
    pub fn listen() -> std::io::Result<Self> {
        let on = signal;
        Ok(Self { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())?, hangup: on(SignalKind::hangup())? })
    }

    pub async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::End("SIGINT"),
            _ = self.terminate.recv() => Told::End("SIGTERM"),
            _ = self.hangup.recv() => Told::Reload,
        }
    }
}

/// No core file of this process is written, and no other process of its user reads its memory: there are private keys in it.
pub fn keep_memory_private() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "a core file of this process could hold private keys");
    }
}

/// Lets the process open as many files and connections as its hard limit allows; returns how many.
pub fn raise_open_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_err() {
        return limit.current;
    }
    limit.maximum
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
