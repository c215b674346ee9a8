//! One file per command, no logic of their own.

mod ca;
pub mod cert;
pub mod control;
pub mod dev;
pub mod dns;
pub mod explain;
pub mod node;
pub mod purge;
pub mod role;
pub mod sample;
pub mod site;
pub mod status;
pub mod token;

use clap::Args;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use tidegate_client::{Client, ClientError, Settings};

/// What a command failed with, and the process's exit code: 1 refused or failed, 2 usage, 3 nothing such, 75 try again.
pub struct Failure {
    pub message: String,
    pub code: u8,
}

impl Failure {
    pub fn new(message: impl std::fmt::Display) -> Self {
        Self { message: message.to_string(), code: 1 }
    }

    pub fn usage(message: impl std::fmt::Display) -> Self {
        Self { message: message.to_string(), code: 2 }
    }
}

impl From<ClientError> for Failure {
    fn from(e: ClientError) -> Self {
        Self { message: e.to_string(), code: e.exit_code() }
    }
}

impl From<tidegate_control::ControlError> for Failure {
    fn from(e: tidegate_control::ControlError) -> Self {
        Self::new(e)
    }
}

impl From<tidegate_node::NodeError> for Failure {
    fn from(e: tidegate_node::NodeError) -> Self {
        Self::new(e)
    }
}

pub type Done = Result<ExitCode, Failure>;

/// The messages that are logged if TIDEGATE_LOG does not say which.
#[derive(Clone, Copy)]
pub enum Logs {
    Role,
    /// Errors, and requests that failed.
    Dev,
    Command,
}

/// Logs go to stderr; TIDEGATE_LOG chooses what (as `info,tidegate_edge=debug`), TIDEGATE_LOG_FORMAT=json how. What reads DNS packets says
/// nothing of bad ones: strangers send them.
pub fn logging(logs: Logs) {
    let usual = match logs {
        Logs::Role => "info,hickory_proto=error",
        Logs::Dev => "error,tidegate_gateway=warn",
        Logs::Command => "error",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("TIDEGATE_LOG").unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let json = std::env::var("TIDEGATE_LOG_FORMAT").is_ok_and(|f| f == "json");
    let _ = if json { builder.json().try_init() } else { builder.with_ansi(false).try_init() };
}

/// Runs `work` on the background runtime of the process.
pub fn block_on<F: Future<Output = Done>>(work: F) -> Done {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().thread_name("background").build();
    let runtime = runtime.map_err(|e| Failure::new(format!("cannot start: {e}")))?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    done
}

/// Where the API is, and what to print.
#[derive(Args)]
pub struct Api {
    /// The API of any control node, such as https://c1.example.net:9443
    #[arg(long, env = "TIDEGATE_API", global = true)]
    api: Option<String>,
    /// A token for it
    #[arg(long, env = "TIDEGATE_TOKEN", hide_env_values = true, global = true)]
    token: Option<String>,
    /// The network's CA, where its certificate is not from a public one
    #[arg(long, env = "TIDEGATE_CA", global = true)]
    ca: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub json: bool,
}

impl Api {
    pub fn client(&self) -> Result<Client, Failure> {
        let file = Saved::load()?;
        let api = self.api.clone().or(file.api).unwrap_or_else(|| "http://127.0.0.1:9080".into());
        let missing = || {
            Failure::usage("no token: set TIDEGATE_TOKEN, pass --token, or write token = \"tgt_...\" into ~/.config/tidegate/config.toml")
        };
        let token = self.token.clone().or(file.token).ok_or_else(missing)?;
        Ok(Client::new(Settings { api, token, ca: self.ca.clone().or(file.ca) })?)
    }
}

/// `~/.config/tidegate/config.toml`.
#[derive(Default)]
struct Saved {
    api: Option<String>,
    token: Option<String>,
    ca: Option<PathBuf>,
}

impl Saved {
    fn load() -> Result<Self, Failure> {
        use tidegate_control_types::settings::{read, string};
        let home = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| std::env::home_dir().map(|h| h.join(".config")));
        let Some(path) = home.map(|h| h.join("tidegate/config.toml")) else { return Ok(Self::default()) };
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(Self::default()) };
        read(&path.display().to_string(), &text, |s| {
            Some(Self {
                api: s.optional("api", string),
                token: s.optional("token", string),
                ca: s.optional("ca", string).map(PathBuf::from),
            })
        })
        .map_err(Failure::usage)
    }
}
