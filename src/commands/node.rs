//! `tidegate node`.

use super::{Api, Done, block_on};
use crate::output;
use clap::{Args, Subcommand};
use http::Method;
use std::process::ExitCode;
use tidegate_control_types::NodeName;
use tidegate_control_types::api::NodeView;

#[derive(Subcommand)]
pub enum Node {
    /// Nodes
    List(List),
    /// One node
    Show(Named),
    /// Send a node no new work
    Drain(Named),
    /// Send it work again
    Undrain(Named),
    /// Remove a node; it counts in purges until its lease is over, and longer where it may serve on its own
    Remove(Remove),
}

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Named {
    name: NodeName,
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Remove {
    #[command(flatten)]
    node: Named,
    /// You vouch that its process is gone: purges no longer wait for it
    #[arg(long)]
    dead: bool,
}

pub fn table(nodes: &[NodeView]) {
    let number = |n: Option<u64>| n.map_or("-".into(), |n| n.to_string());
    let ratio = |n: &NodeView| match (n.requests, n.hits) {
        (Some(r), Some(h)) if r > 0 => format!("{}%", h * 100 / r),
        _ => "-".into(),
    };
    let row = |n: &NodeView| {
        let stored = n.stored_bytes.map_or("-".into(), output::bytes);
        vec![n.name.clone(), n.role.clone(), n.region.clone(), n.state.clone(), number(n.applied), number(n.requests), ratio(n), stored]
    };
    output::table(
        &["NAME", "ROLE", "REGION", "STATE", "REVISION", "REQUESTS", "HITS", "STORED"],
        &nodes.iter().map(row).collect::<Vec<_>>(),
    );
}

impl Node {
    pub fn run(self) -> Done {
        block_on(async {
            match self {
                Self::List(c) => {
                    let nodes: Vec<NodeView> = c.api.client()?.get("/v1/nodes").await?;
                    if c.api.json { output::json(&nodes) } else { table(&nodes) }
                }
                Self::Show(c) => {
                    let node: NodeView = c.api.client()?.get(&format!("/v1/nodes/{}", c.name)).await?;
                    if c.api.json {
                        output::json(&node);
                    } else {
                        table(std::slice::from_ref(&node));
                        node.origins_down.iter().for_each(|o| output::line(&format!("origin down: {o}")));
                    }
                }
                Self::Drain(c) => c.api.client()?.act(Method::POST, &format!("/v1/nodes/{}/drain", c.name)).await?,
                Self::Undrain(c) => c.api.client()?.act(Method::POST, &format!("/v1/nodes/{}/undrain", c.name)).await?,
                Self::Remove(c) => {
                    let path = format!("/v1/nodes/{}?dead={}", c.node.name, c.dead);
                    c.node.api.client()?.act(Method::DELETE, &path).await?;
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}
