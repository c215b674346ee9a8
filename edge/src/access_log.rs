//! The access log: one JSON line per request, written by a thread of its own behind a bounded buffer. A slow disk costs
//! lines, which are counted, and never a worker's time.

use crate::settings::AccessLog;
use serde::Serialize;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use tidegate_node::NodeError;

const MOST_WAITING: usize = 16_384;

#[derive(Serialize)]
pub struct Line<'a> {
    /// Milliseconds since 1970.
    pub time: u64,
    pub node: &'a str,
    pub site: &'a str,
    pub client: Option<std::net::IpAddr>,
    pub protocol: &'a str,
    pub method: &'a str,
    pub host: &'a str,
    pub target: &'a str,
    pub status: u16,
    /// Of the body.
    pub bytes: u64,
    /// Whether the whole body was handed over.
    pub complete: bool,
    /// `hit`, or why it went forward (RFC 9211).
    pub cache: &'a str,
    pub detail: Option<&'a str>,
    pub collapsed: bool,
    pub milliseconds: u64,
}

enum Message {
    Line(Vec<u8>),
    Reopen,
}

#[derive(Clone)]
pub struct Log {
    sender: SyncSender<Message>,
    pub dropped: Arc<AtomicU64>,
}

fn open(to: &AccessLog) -> std::io::Result<Box<dyn Write + Send>> {
    Ok(match to {
        AccessLog::Stdout => Box::new(std::io::stdout()),
        AccessLog::File(path) => {
            Box::new(std::io::BufWriter::with_capacity(64 << 10, std::fs::OpenOptions::new().create(true).append(true).open(path)?))
        }
    })
}

impl Log {
    /// # Errors
    /// The file cannot be opened.
    pub fn start(to: AccessLog) -> Result<Self, NodeError> {
        let fail = |error| match &to {
            AccessLog::File(path) => NodeError::file(path, error),
            AccessLog::Stdout => NodeError::Runtime(format!("the access log cannot be written: {error}")),
        };
        let out = open(&to).map_err(fail)?;
        let (sender, receiver) = sync_channel(MOST_WAITING);
        let log = Self { sender, dropped: Arc::default() };
        let dropped = Arc::clone(&log.dropped);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(&receiver, out, &to, &dropped))
            .map_err(|e| NodeError::Runtime(e.to_string()))?;
        Ok(log)
    }

    pub fn line(&self, line: &Line<'_>) {
        let Ok(mut bytes) = serde_json::to_vec(line) else { return };
        bytes.push(b'\n');
        if let Err(TrySendError::Full(_)) = self.sender.try_send(Message::Line(bytes)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// For log rotation.
    pub fn reopen(&self) {
        let _ = self.sender.try_send(Message::Reopen);
    }
}

fn write(receiver: &Receiver<Message>, mut out: Box<dyn Write + Send>, to: &AccessLog, dropped: &AtomicU64) {
    while let Ok(first) = receiver.recv() {
        for message in std::iter::once(first).chain(receiver.try_iter().take(MOST_WAITING)) {
            match message {
                Message::Line(bytes) => {
                    if out.write_all(&bytes).is_err() {
                        dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Message::Reopen => match open(to) {
                    Ok(new) => {
                        let _ = out.flush();
                        out = new;
                    }
                    Err(error) => tracing::error!(%error, "the access log cannot be opened again"),
                },
            }
        }
        let _ = out.flush();
    }
}
