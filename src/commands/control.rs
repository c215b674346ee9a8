//! `tidegate control`.

use super::role::{check_on_reload, checked, until_told};
use super::{Api, Done, Failure, block_on};
use crate::output;
use clap::{Args, Subcommand};
use http::{HeaderMap, Method};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use tidegate_control::{Bound, ControlSettings};
use tidegate_control_types::api::MemberView;

#[derive(Subcommand)]
pub enum Control {
    /// Found a cluster: its CA, its keys, its first control node and an admin token
    Init(Init),
    /// Run a control node
    Run(Run),
    /// Enrol a further control node with its join token
    Join(Config),
    /// Control nodes and their part
    Members(Members),
    /// Save the whole state of the network to a file
    Backup(Backup),
    /// Make this node the first of the network in a backup, under a new incarnation
    Restore(Restore),
}

#[derive(Args)]
pub struct Config {
    /// The settings (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Args)]
pub struct Init {
    #[command(flatten)]
    config: Config,
    /// Name of the cluster
    #[arg(long, default_value = "main")]
    cluster: tidegate_control_types::NodeName,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    config: Config,
    /// Check the settings and exit
    #[arg(long)]
    check: bool,
}

#[derive(Args)]
pub struct Members {
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Backup {
    /// Where to; it must not exist yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Restore {
    #[command(flatten)]
    config: Config,
    /// What `control backup` saved
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Control {
    pub fn run(self) -> Done {
        match self {
            Self::Init(c) => c.run(),
            Self::Join(c) => block_on(async {
                let settings = ControlSettings::from_file(&c.config)?;
                tidegate_control::join(&settings).await?;
                output::line(&format!(
                    "{} is enrolled; start it with: tidegate control run --config {}",
                    settings.name,
                    c.config.display()
                ));
                Ok(ExitCode::SUCCESS)
            }),
            Self::Run(c) => {
                let settings = ControlSettings::from_file(&c.config.config)?;
                if c.check {
                    return checked(&c.config.config);
                }
                block_on(async {
                    let bound = Bound::bind(&settings)?;
                    until_told(|stopping| async {
                        let file = c.config.config.clone();
                        tokio::spawn(check_on_reload(stopping.clone(), move || Ok(ControlSettings::from_file(&file).map(drop)?)));
                        Ok(tidegate_control::run(settings, bound, stopping).await?)
                    })
                    .await
                })
            }
            Self::Backup(c) => block_on(c.run()),
            Self::Restore(c) => c.run(),
            Self::Members(c) => block_on(async {
                let members: Vec<MemberView> = c.api.client()?.get("/v1/members").await?;
                if c.api.json {
                    output::json(&members);
                } else {
                    let rows: Vec<_> = members.into_iter().map(|m| vec![m.id.to_string(), m.name, m.state, m.address]).collect();
                    output::table(&["ID", "NAME", "STATE", "ADDRESS"], &rows);
                }
                Ok(ExitCode::SUCCESS)
            }),
        }
    }
}

impl Backup {
    async fn run(self) -> Done {
        let answer = self.api.client()?.ask(Method::GET, "/v1/backup", HeaderMap::new(), Vec::new()).await?;
        // Whole or not at all: written beside it, and only then given its name.
        let wrong = |e: std::io::Error| Failure::new(format!("{}: {e}", self.file.display()));
        if self.file.exists() {
            return Err(Failure::new(format!("{} is there already; name a file that is not", self.file.display())));
        }
        let folder = self.file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
        let mut new = tempfile::NamedTempFile::new_in(folder).map_err(wrong)?;
        new.write_all(&answer.body).and_then(|()| new.as_file().sync_all()).map_err(wrong)?;
        new.persist_noclobber(&self.file).map_err(|e| wrong(e.error))?;
        output::line(&format!("{} bytes saved to {}.", answer.body.len(), self.file.display()));
        output::line("Keep it with the cluster key, which opens what is sealed in it and is not part of it.");
        Ok(ExitCode::SUCCESS)
    }
}

impl Restore {
    fn run(self) -> Done {
        let settings = ControlSettings::from_file(&self.config.config)?;
        let restored = tidegate_control::backup::restore(&settings, &self.file)?;
        let made = httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_millis(restored.made.0));
        output::line(&format!(
            "The network {} of {made} is restored: {} sites, {} edges and shields.",
            restored.cluster, restored.sites, restored.nodes
        ));
        output::line("Every other control node of before must be stopped, and joins anew.");
        output::line("What caches hold is revalidated. A node that enrolled after the backup was made is unknown: end its process.");
        output::line(&format!("Now: tidegate control run --config {}", self.config.config.display()));
        Ok(ExitCode::SUCCESS)
    }
}

impl Init {
    fn run(self) -> Done {
        let settings = ControlSettings::from_file(&self.config.config)?;
        let founded = tidegate_control::init(&settings, self.cluster.as_str())?;
        let ca = settings.cluster_key.with_file_name("ca.pem");
        std::fs::write(&ca, &founded.ca).map_err(|e| Failure::new(format!("{}: {e}", ca.display())))?;
        if self.json {
            output::json(&serde_json::json!({ "cluster": self.cluster, "token": founded.admin_token, "ca": ca }));
            return Ok(ExitCode::SUCCESS);
        }
        output::line(&format!("The cluster {} is founded. Its CA is in {}.", self.cluster, ca.display()));
        output::line(&format!("\nThe admin token, shown this once:\n\n  {}\n", founded.admin_token));
        output::line(&format!("Keep {} safe: it opens every sealed key of the cluster.", settings.cluster_key.display()));
        output::line(&format!("Now: tidegate control run --config {}", self.config.config.display()));
        Ok(ExitCode::SUCCESS)
    }
}
