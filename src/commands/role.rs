//! `tidegate edge`, `tidegate shield` and `tidegate dns`.

use super::{Done, Failure, block_on};
use crate::output;
use clap::Args;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use tidegate_dns::DnsSettings;
use tidegate_edge::EdgeSettings;
use tidegate_node::lifecycle::{Signals, Stopping, Told, keep_memory_private, raise_open_files, stop_pair};
use tidegate_origin_shield::ShieldSettings;

#[derive(Args)]
pub struct Role {
    /// The settings (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Check the settings and exit
    #[arg(long)]
    pub check: bool,
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
            until_told(|stopping| async {
                tokio::spawn(check_on_reload(stopping.clone(), move || Ok(ShieldSettings::from_file(&self.config).map(drop)?)));
                Ok(tidegate_origin_shield::run(settings, bound, stopping).await?)
            })
            .await
        })
    }
}

impl Role {
    pub fn dns(self) -> Done {
        let settings = DnsSettings::from_file(&self.config)?;
        if self.check {
            settings.read_networks()?;
            return checked(&self.config);
        }
        block_on(async {
            let bound = tidegate_dns::Bound::bind(&settings)?;
            until_told(|stopping| async {
                tokio::spawn(check_on_reload(stopping.clone(), move || Ok(DnsSettings::from_file(&self.config).map(drop)?)));
                Ok(tidegate_dns::run(settings, bound, stopping).await?)
            })
            .await
        })
    }
}

pub fn checked(file: &std::path::Path) -> Done {
    output::line(&format!("{}: good", file.display()));
    Ok(ExitCode::SUCCESS)
}

/// Runs a role until SIGINT or SIGTERM, or until it ends by itself. SIGHUP makes it read its settings again.
pub async fn until_told<F: Future<Output = Result<(), Failure>>>(run: impl FnOnce(Stopping) -> F) -> Done {
    let mut signals = Signals::listen().map_err(Failure::new)?;
    let open_files = raise_open_files();
    keep_memory_private();
    tracing::debug!(?open_files, "limits of the process");
    let (stop, stopping) = stop_pair();
    let mut running = std::pin::pin!(run(stopping));
    loop {
        tokio::select! {
            ended = running.as_mut() => {
                ended?;
                return Ok(ExitCode::SUCCESS);
            }
            told = signals.next() => match told {
                Told::Reload => stop.reload(),
                Told::End(signal) => {
                    tracing::info!(signal, "draining");
                    stop.stop();
                    return finish(running, &mut signals).await;
                }
            },
        }
    }
}

/// Until the role has drained, or a second signal wants it to end at once.
async fn finish(running: Pin<&mut impl Future<Output = Result<(), Failure>>>, signals: &mut Signals) -> Done {
    let again = async {
        loop {
            if let Told::End(signal) = signals.next().await {
                return signal;
            }
        }
    };
    tokio::select! {
        ended = running => ended.map(|()| ExitCode::SUCCESS),
        signal = again => Err(Failure::new(format!("a second signal ({signal}): ended before it had drained"))),
    }
}

/// Reads a settings file again whenever that is asked for, and says what is wrong with it; for roles whose settings all
/// need a restart.
pub async fn check_on_reload(mut stopping: Stopping, check: impl Fn() -> Result<(), Failure>) {
    while stopping.reload().await {
        match check() {
            Ok(()) => tracing::info!("settings read again: they are good, and in force after a restart"),
            Err(error) => tracing::error!(error = %error.message, "settings not changed"),
        }
    }
}
