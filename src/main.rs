//! `tidegate`: one binary, all roles, and the command line of the network.

#![forbid(unsafe_code)]

mod commands;
mod output;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A content delivery network that you run yourself.
#[derive(Parser)]
#[command(name = "tidegate", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole network in one process on this machine, in front of your site or of a small sample
    Dev(commands::dev::Dev),
    /// Run a control node, or found and extend the control plane
    #[command(subcommand)]
    Control(commands::control::Control),
    /// Run an edge
    Edge(commands::role::Role),
    /// Run an origin shield
    Shield(commands::role::Role),
    /// Answer for the network's zone, and send clients to edges near them that are ready
    Dns(commands::dns::Dns),
    /// Sites: apply, look at, roll back
    #[command(subcommand)]
    Site(commands::site::Site),
    /// Purge, and wait until it is true everywhere
    Purge(commands::purge::Purge),
    /// Certificates: look at, upload, order
    #[command(subcommand)]
    Cert(commands::cert::Cert),
    /// Nodes: look at, drain, remove
    #[command(subcommand)]
    Node(commands::node::Node),
    /// Tokens for the API, and join tokens for nodes
    #[command(subcommand)]
    Token(commands::token::Token),
    /// What each node holds for a URL, and what it would do with a request for it
    Explain(commands::explain::Explain),
    /// The network as a whole
    Status(commands::status::Status),
    /// Who did what, newest first
    Audit(commands::status::Audit),
    /// Completions for a shell
    Completions { shell: clap_complete::Shell },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Every TLS of the process speaks through the same provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    commands::logging(match &cli.command {
        Command::Control(commands::control::Control::Run(_)) | Command::Edge(_) | Command::Shield(_) => commands::Logs::Role,
        Command::Dns(dns) if dns.is_role() => commands::Logs::Role,
        Command::Dev(_) => commands::Logs::Dev,
        _ => commands::Logs::Command,
    });
    let done = match cli.command {
        Command::Dev(c) => c.run(),
        Command::Control(c) => c.run(),
        Command::Edge(c) => c.edge(),
        Command::Shield(c) => c.shield(),
        Command::Dns(c) => c.run(),
        Command::Site(c) => c.run(),
        Command::Purge(c) => c.run(),
        Command::Cert(c) => c.run(),
        Command::Node(c) => c.run(),
        Command::Token(c) => c.run(),
        Command::Explain(c) => c.run(),
        Command::Status(c) => c.run(),
        Command::Audit(c) => c.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut <Cli as clap::CommandFactory>::command(), "tidegate", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end());
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|failure| {
        output::error(&failure.message);
        ExitCode::from(failure.code)
    })
}
