//! `tidegate edge` and `tidegate shield`.

use super::{Done, Failure, block_on};
use crate::output;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;
use tidegate_edge::EdgeSettings;
use tidegate_node::lifecycle::{Stopping, stop_pair, until_signal};
use tidegate_origin_shield::ShieldSettings;

#[derive(Args)]
pub struct Role {
    /// The settings (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the settings and exit
    #[arg(long)]
    check: bool,
}

impl Role {
    pub fn edge(self) -> Done {
        let settings = EdgeSettings::from_file(&self.config)?;
        if self.check {
            return checked(&self.config);
        }
        block_on(async {
            let bound = tidegate_edge::Bound::bind(&settings)?;
            until_told(|stopping| async { Ok(tidegate_edge::run(settings, bound, Some(self.config), stopping).await?) }).await
        })
    }

    pub fn shield(self) -> Done {
        let settings = ShieldSettings::from_file(&self.config)?;
        if self.check {
            return checked(&self.config);
        }
        block_on(async {
            let bound = tidegate_origin_shield::Bound::bind(&settings)?;
            until_told(|stopping| async { Ok(tidegate_origin_shield::run(settings, bound, stopping).await?) }).await
        })
    }
}

pub fn checked(file: &std::path::Path) -> Done {
    output::line(&format!("{}: good", file.display()));
    Ok(ExitCode::SUCCESS)
}

/// Runs a role until SIGINT or SIGTERM, or until it ends by itself.
pub async fn until_told<F: Future<Output = Result<(), Failure>>>(run: impl FnOnce(Stopping) -> F) -> Done {
    let (stop, stopping) = stop_pair();
    let mut running = std::pin::pin!(run(stopping));
    tokio::select! {
        ended = running.as_mut() => ended?,
        signal = until_signal() => {
            tracing::info!(signal = signal.unwrap_or("no signal"), "draining");
            stop.stop();
            running.await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
