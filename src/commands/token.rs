//! `tidegate token`.

use super::{Api, Done, Failure, block_on};
use crate::output;
use clap::{Args, Subcommand};
use http::Method;
use std::process::ExitCode;
use tidegate_control_types::Role;
use tidegate_control_types::api::{JoinRequest, TokenRequest, TokenView};
use tidegate_control_types::settings::parse_duration;
use tidegate_control_types::token::TokenRole;

#[derive(Subcommand)]
pub enum Token {
    /// Make a token for the API, or with --join a one-time token for a new node
    Create(Create),
    /// Tokens, without their secrets
    List(List),
    /// Revoke a token
    Revoke(Revoke),
}

#[derive(Args)]
pub struct Create {
    /// admin, deploy (sites and purges), purge or read
    #[arg(long, value_name = "ROLE", required_unless_present = "join")]
    role: Option<TokenRole>,
    /// For a node of this role: control, edge, shield or dns
    #[arg(long, value_name = "ROLE", conflicts_with_all = ["role", "site", "note"])]
    join: Option<Role>,
    /// With --join: only in this region
    #[arg(long, requires = "join")]
    region: Option<String>,
    /// Only for this site; may be given several times
    #[arg(long)]
    site: Vec<String>,
    /// What it is for
    #[arg(long, default_value = "")]
    note: String,
    /// How long it is good for, such as 30d; a join token 1h
    #[arg(long, value_name = "DURATION")]
    ttl: Option<String>,
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Revoke {
    id: String,
    #[command(flatten)]
    api: Api,
}

impl Token {
    pub fn run(self) -> Done {
        block_on(async {
            match self {
                Self::Create(c) => c.run().await?,
                Self::List(c) => {
                    let tokens: Vec<TokenView> = c.api.client()?.get("/v1/tokens").await?;
                    if c.api.json {
                        output::json(&tokens);
                    } else {
                        let time = |t: Option<u64>| t.map_or("never".into(), super::status::time);
                        let row = |t: TokenView| vec![t.id, t.role, t.sites.join(", "), time(t.expires), t.note];
                        output::table(&["ID", "ROLE", "SITES", "EXPIRES (UTC)", "NOTE"], &tokens.into_iter().map(row).collect::<Vec<_>>());
                    }
                }
                Self::Revoke(c) => c.api.client()?.act(Method::DELETE, &format!("/v1/tokens/{}", c.id)).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Create {
    async fn run(self) -> Result<(), Failure> {
        let expires_in =
            self.ttl.as_deref().map(parse_duration).transpose().map_err(|e| Failure::usage(format!("--ttl: {e}")))?.map(|d| d.as_secs());
        let client = self.api.client()?;
        let made = match (self.join, self.role) {
            (Some(role), _) => client.create_join(&JoinRequest { role, region: self.region, expires_in }).await?,
            (None, Some(role)) => client.create_token(&TokenRequest { role, sites: self.site, note: self.note, expires_in }).await?,
            (None, None) => return Err(Failure::usage("--role or --join is needed")),
        };
        if self.api.json {
            output::json(&made);
        } else {
            // The token alone on stdout, so that it can go straight into a file.
            output::note(&format!("token {} ({}), shown this once:", made.id, made.role));
            output::line(&made.token.unwrap_or_default());
        }
        Ok(())
    }
}
