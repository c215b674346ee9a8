//! Purges: told, waited for, and asked about again.

use super::{ApiError, Caller, json, reply};
use crate::purge::{Look, Waiting};
use crate::shared::{Control, NotNow};
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_state::PurgeRecord;
use tidegate_control_types::api::PurgeRequest;
use tidegate_control_types::purge::{MAX_SELECTORS, PurgeType};
use tidegate_control_types::settings::parse_duration;
use tidegate_control_types::token::Verb;
use tidegate_control_types::{BootTime, Change, PurgeOrder, Selector, SiteName};

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
    let orders = control.raft.state.read().placed(orders(&asked)?).map_err(NotNow::from)?;
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

/// `200` once it is true; `202` when the wait is over, or when waiting cannot help.
async fn until_true(control: &Arc<Control>, index: u64, deadline: BootTime) -> Result<Response, ApiError> {
    let waiting = Waiting { index, record: record(control, index)?, deadline };
    let mut changed = control.changed.subscribe();
    loop {
        changed.mark_unchanged();
        let now = control.now();
        match control.with_leadership(|state, leadership| waiting.look(state, leadership, now)).ok_or(NotNow::NoLeader)? {
            Look::Confirm(receipt) => {
                control.read_barrier().await?;
                return Ok(reply(StatusCode::OK, &receipt));
            }
            Look::NotYet(receipt) => return Ok(reply(StatusCode::ACCEPTED, &receipt)),
            Look::Wait { until } => tokio::select! {
                _ = changed.changed() => {}
                () = tokio::time::sleep(until.since(now) + Duration::from_millis(1)) => {}
            },
        }
    }
}
