//! What every node that follows the log does once it is set up: it follows, says when it serves, and ends.

use crate::NodeError;
use crate::lifecycle::{Stopping, notify_systemd};
use crate::link::Links;
use crate::watch::{Removed, Watcher};
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Follows the log until the node is told to stop; `serves` is logged once it may begin. `tasks` end with it.
///
/// # Errors
/// The control plane removed the node; `data` is the folder that is of no use any more.
pub async fn follow(
    watcher: Watcher<Arc<Links>>,
    serves: &'static str,
    data: &Path,
    mut tasks: JoinSet<()>,
    stopping: &mut Stopping,
) -> Result<(), NodeError> {
    let (mut begun, node) = (watcher.watched.begun.subscribe(), watcher.node.clone());
    let mut watching = tokio::spawn(watcher.run());
    tasks.spawn(async move {
        if begun.wait_for(|b| *b).await.is_ok() {
            tracing::info!(node, "{serves}");
            notify_systemd("READY=1");
        }
    });
    let ended = tokio::select! {
        () = stopping.stopped() => Ok(()),
        ended = &mut watching => Err(match ended {
            Ok(Removed) => NodeError::Removed { data: data.display().to_string() },
            Err(e) => NodeError::Runtime(e.to_string()),
        }),
    };
    notify_systemd("STOPPING=1");
    watching.abort();
    tasks.shutdown().await;
    ended
}
