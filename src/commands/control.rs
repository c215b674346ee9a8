//! `tidegate control`.

use super::ca::Ca;
use super::role::{check_on_reload, checked, until_told};
use super::{Api, Done, Failure, block_on};
use crate::output;
use clap::{Args, Subcommand, ValueEnum};
use http::{HeaderMap, Method};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tidegate_control::settings::ClusterKeySource;
use tidegate_control::{Bound, ControlSettings};
use tidegate_control_types::api::{KeysView, MemberView};

const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Without any progress.
const MOST_LOOKS: u32 = 100;

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
    /// The network's own authority, which nodes' certificates are of
    #[command(subcommand)]
    Ca(Ca),
    /// Make a new key in the place of one, without an interruption
    RotateKey(RotateKey),
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
    /// Write the root's private key to this file, to be kept offline, in the place of the log
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Key {
    /// What seals secrets in the log
    Cluster,
    /// What seals session tickets of TLS
    Tickets,
}

#[derive(Args)]
pub struct RotateKey {
    #[arg(default_value = "cluster")]
    key: Key,
    #[command(flatten)]
    api: Api,
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
            Self::Ca(c) => c.run(),
            Self::RotateKey(c) => block_on(c.run()),
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
        output::line("Keep the cluster key too, which opens what is sealed in it and is not part of it: in another place.");
        Ok(ExitCode::SUCCESS)
    }
}

impl RotateKey {
    async fn run(self) -> Done {
        let client = self.api.client()?;
        let path = match self.key {
            Key::Cluster => "/v1/keys/cluster/rotate",
            Key::Tickets => "/v1/keys/tickets/rotate",
        };
        let mut keys: KeysView = client.post(path, &serde_json::json!({})).await?;
        // The leader seals anew what the old key sealed.
        let (mut left, mut looks) = (usize::MAX, 0);
        while matches!(self.key, Key::Cluster) && keys.sealed_otherwise > 0 {
            if keys.sealed_otherwise < left {
                (left, looks) = (keys.sealed_otherwise, 0);
                output::note(&format!("{left} of {} secrets are still sealed under an older key", keys.sealed));
            } else if looks >= MOST_LOOKS {
                return Err(Failure::new(format!("{left} secrets stay under an older key: the leader's log says why")));
            }
            looks += 1;
            tokio::time::sleep(LOOK_EVERY).await;
            keys = client.get("/v1/keys").await?;
        }
        match (self.api.json, self.key) {
            (true, _) => output::json(&keys),
            (false, Key::Cluster) => {
                output::line(&format!("The key {} seals all {} secrets of the network.", keys.cluster_key, keys.sealed));
                output::line("Older keys stay in the key files: they open older backups. Where none is kept, their lines can go.");
            }
            (false, Key::Tickets) => output::line("A new key seals session tickets. Those of the one before are good until the next."),
        }
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
        if !restored.has_root {
            output::line(
                "The root's key is offline. Where the issuing authority of then was retired since, nodes refuse this control node until another one signs:",
            );
            output::line("tidegate control ca request, sign and install.");
        }
        if restored.seals_with_an_older_key {
            output::line("It seals with the cluster key of then. To have a new one: tidegate control rotate-key");
        }
        output::line("Every other control node of before must be stopped, and joins anew.");
        output::line("What caches hold is revalidated. A node that enrolled after the backup was made is unknown: end its process.");
        output::line(&format!("Now: tidegate control run --config {}", self.config.config.display()));
        Ok(ExitCode::SUCCESS)
    }
}

impl Init {
    fn run(self) -> Done {
        let settings = ControlSettings::from_file(&self.config.config)?;
        let founded = tidegate_control::init(&settings, self.cluster.as_str(), self.root_key.as_deref())?;
        let ca = settings.cluster_key.beside(&settings.node_key, "ca.pem");
        std::fs::write(&ca, &founded.ca).map_err(|e| Failure::new(format!("{}: {e}", ca.display())))?;
        if self.json {
            output::json(&serde_json::json!({ "cluster": self.cluster, "token": founded.admin_token, "ca": ca }));
            return Ok(ExitCode::SUCCESS);
        }
        output::line(&format!("The cluster {} is founded. Its CA is in {}.", self.cluster, ca.display()));
        output::line(&format!("\nThe admin token, shown this once:\n\n  {}\n", founded.admin_token));
        if let ClusterKeySource::File(path) = &settings.cluster_key {
            output::line(&format!("Keep {} safe: it opens every sealed key of the cluster.", path.display()));
        }
        if let Some(file) = &self.root_key {
            output::line(&format!(
                "Keep {} offline: it makes issuing authorities, every three years (tidegate control ca).",
                file.display()
            ));
        }
        output::line(&format!("Now: tidegate control run --config {}", self.config.config.display()));
        Ok(ExitCode::SUCCESS)
    }
}
