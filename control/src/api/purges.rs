//! Purges: told, waited for, and asked about again.

use super::{ApiError, Caller, json, reply};
use crate::purge::assess;
use crate::shared::Control;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_state::PurgeRecord;
use tidegate_control_types::api::{PurgeRequest, Receipt, ReceiptNode};
use tidegate_control_types::fleet::NodeVerdict;
use tidegate_control_types::purge::{MAX_SELECTORS, PurgeType};
use tidegate_control_types::settings::parse_duration;
use tidegate_control_types::token::Verb;
use tidegate_control_types::{BootTime, Change, PurgeOrder, Revision, Selector, SiteName};

const MOST_WAIT: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
pub struct Wait {
    wait: Option<String>,
}

impl Wait {
    fn duration(&self) -> Result<Duration, ApiError> {
        let Some(text) = &self.wait else { return Ok(Duration::ZERO) };
        let wait = parse_duration(text).map_err(|e| ApiError::bad(format!("wait: {e}")))?;
        Ok(wait.min(MOST_WAIT))
    }
}

fn orders(asked: &PurgeRequest) -> Result<Vec<PurgeOrder>, ApiError> {
    let site = asked.site.as_deref().map(str::parse::<SiteName>).transpose().map_err(|e| ApiError::bad(format!("site: {e}")))?;
    let order = |selector| PurgeOrder { site: site.clone(), selector, soft: asked.soft };
    match asked.r#type {
        PurgeType::All | PurgeType::Site if !asked.selectors.is_empty() => {
            Err(ApiError::bad(format!("a purge of type {} takes no selectors", asked.r#type.as_str())))
        }
        PurgeType::All if site.is_some() => Err(ApiError::bad("a purge of type all is of every site; to purge one, use type site")),
        PurgeType::All => Ok(vec![order(Selector::All)]),
        PurgeType::Site if site.is_none() => Err(ApiError::bad("a purge of type site needs the site's name in site")),
        PurgeType::Site => Ok(vec![order(Selector::Site)]),
        kind => {
            if asked.selectors.is_empty() || asked.selectors.len() > MAX_SELECTORS {
                return Err(ApiError::bad(format!("a purge takes 1 to {MAX_SELECTORS} selectors")));
            }
            asked.selectors.iter().map(|s| Selector::parse(kind, s).map(order).map_err(ApiError::bad)).collect()
        }
    }
}

pub async fn purge(
    State(control): State<Arc<Control>>,
    Query(wait): Query<Wait>,
    caller: Caller,
    body: Bytes,
) -> Result<Response, ApiError> {
    let wait = wait.duration()?;
    let asked: PurgeRequest = json(&body)?;
    let orders = control.raft.state.read().placed(orders(&asked)?).map_err(crate::shared::NotNow::from)?;
    for order in &orders {
        caller.may(Verb::Purge, order.site.as_ref())?;
    }
    let deadline = control.now() + wait;
    let index = control.change(&caller.name(), Change::Purge { orders }).await?;
    tracing::info!(revision = index, by = caller.name(), kind = asked.r#type.as_str(), selectors = asked.selectors.len(), "purge");
    until_true(&control, index, deadline).await
}

pub async fn receipt(
    State(control): State<Arc<Control>>,
    Path(index): Path<u64>,
    Query(wait): Query<Wait>,
    caller: Caller,
) -> Result<Response, ApiError> {
    let record = record(&control, index)?;
    for order in &record.orders {
        caller.may(Verb::Read, order.site.as_ref())?;
    }
    let deadline = control.now() + wait.duration()?;
    until_true(&control, index, deadline).await
}

fn record(control: &Control, index: u64) -> Result<PurgeRecord, ApiError> {
    control.raft.state.read().purge(index).cloned().map_err(|forgotten| match forgotten {
        true => ApiError::new(StatusCode::GONE, "gone", "receipts are kept for 24 hours, and for the last 100,000 purges"),
        false => ApiError::not_found(format!("there is no purge {index}")),
    })
}

struct Standing {
    receipt: Receipt,
    is_true: bool,
    is_stuck: bool,
    changes_at: Option<BootTime>,
}

fn standing(control: &Control, index: u64, record: &PurgeRecord) -> Result<Standing, ApiError> {
    let now = control.now();
    let found = control.with_leadership(|state, leadership| {
        let assessment = assess(state, leadership, index, record, now);
        let node = |(node, verdict): &(&tidegate_control_types::NodeState, NodeVerdict)| ReceiptNode {
            name: node.name.to_string(),
            role: node.role.to_string(),
            region: node.region.clone(),
            state: match verdict {
                NodeVerdict::Applied => "applied",
                NodeVerdict::Silent => "silent",
                NodeVerdict::Waiting { .. } => "waiting",
                NodeVerdict::MayServe => "may_serve",
            }
            .into(),
            applied_at: leadership.fleet.acked_at(&node.name, index).map(|t| t.0),
        };
        let nodes = assessment.nodes.iter().map(node).collect();
        let revision = Revision::new(state.founding.incarnation, index);
        Standing {
            receipt: describe(record, revision, nodes),
            is_true: assessment.is_true(),
            is_stuck: assessment.is_stuck(),
            changes_at: assessment.changes_at(),
        }
    });
    found.ok_or_else(|| crate::shared::NotNow::NoLeader.into())
}

fn describe(record: &PurgeRecord, revision: Revision, nodes: Vec<ReceiptNode>) -> Receipt {
    let first = record.orders.first();
    let (kind, text): (_, fn(&Selector) -> Option<String>) = match first.map(|o| &o.selector) {
        Some(Selector::Url { .. }) => {
            (PurgeType::Url, |s| if let Selector::Url { host, target } = s { Some(format!("{host}{target}")) } else { None })
        }
        Some(Selector::Tag { .. }) => (PurgeType::Tag, |s| if let Selector::Tag { tag } = s { Some(tag.clone()) } else { None }),
        Some(Selector::Prefix { .. }) => {
            (PurgeType::Prefix, |s| if let Selector::Prefix { host, path } = s { Some(format!("{host}{path}")) } else { None })
        }
        Some(Selector::Host { .. }) => (PurgeType::Host, |s| s.host().map(str::to_owned)),
        Some(Selector::Site) => (PurgeType::Site, |_| None),
        Some(Selector::All) | None => (PurgeType::All, |_| None),
    };
    Receipt {
        revision: revision.to_string(),
        index: revision.index,
        r#type: kind,
        site: first.and_then(|o| o.site.as_ref()).map(ToString::to_string),
        selectors: record.orders.iter().filter_map(|o| text(&o.selector)).collect(),
        soft: first.is_some_and(|o| o.soft),
        by: record.by.clone(),
        at: record.at.0,
        done: false,
        nodes,
    }
}

/// `200` once it is true; `202` when the wait is over, or when waiting cannot help.
async fn until_true(control: &Arc<Control>, index: u64, deadline: BootTime) -> Result<Response, ApiError> {
    let record = record(control, index)?;
    let mut changed = control.changed.subscribe();
    loop {
        changed.mark_unchanged();
        let mut found = standing(control, index, &record)?;
        if found.is_true {
            // Only now, and only if this node still leads: another leader may have granted a lease that this one does not
            // count.
            control.read_barrier().await?;
            found.receipt.done = true;
            return Ok(reply(StatusCode::OK, &found.receipt));
        }
        let now = control.now();
        if found.is_stuck || now >= deadline {
            return Ok(reply(StatusCode::ACCEPTED, &found.receipt));
        }
        let sleep = found.changes_at.map_or(deadline, |at| at.min(deadline)).since(now);
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(sleep + Duration::from_millis(1)) => {}
        }
    }
}
