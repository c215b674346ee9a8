//! How much room each edge has, by the load that it reports: little by little, so that answers do not flap.

use std::collections::BTreeMap;
use std::time::Duration;
use tidegate_control_types::{BootTime, EdgeStanding, NodeName};

/// Up to this load an edge lets all in; from there on fewer, down to a tenth of them at full load.
const ROOMY: f64 = 0.5;
const LEAST_ROOM: f64 = 0.1;
/// What was reported so long ago counts for a third of what is reported now. Longer than caches keep answers, or the load that an
/// answer brings would come after the next change.
const MEMORY: Duration = Duration::from_secs(60);
/// A node that is cut off hears nothing new.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);
/// The room changes once it would by more than this.
const STEP: f64 = 0.05;

#[derive(Debug, Default)]
pub struct Loads(BTreeMap<NodeName, Load>);

#[derive(Debug)]
struct Load {
    capacity: u32,
    /// From [`LEAST_ROOM`] to 1: as it is by now, and as it counts.
    smooth: f64,
    counts: f64,
    at: BootTime,
}

fn room(load: f64) -> f64 {
    let over = (load.clamp(0.0, 1.0) - ROOMY).max(0.0) / (1.0 - ROOMY);
    1.0 - over * (1.0 - LEAST_ROOM)
}

impl Loads {
    pub fn reported(&mut self, standings: &[EdgeStanding], now: BootTime) {
        self.0.retain(|name, _| standings.iter().any(|s| s.node == *name));
        // One that has not reported to this leader yet is as it was.
        for standing in standings.iter().filter(|s| s.capacity > 0) {
            let room = room(f64::from(standing.load_permille) / 1000.0);
            let load = self.0.entry(standing.node.clone()).or_insert(Load { capacity: 1, smooth: room, counts: room, at: now });
            load.capacity = standing.capacity.max(1);
            let passed = now.since(load.at).as_secs_f64() / MEMORY.as_secs_f64();
            load.smooth += (room - load.smooth) * (1.0 - (-passed).exp());
            load.at = now;
            if (load.smooth - load.counts).abs() > STEP {
                // Where there is enough for all again, all are let in.
                load.counts = if load.smooth > 1.0 - STEP { 1.0 } else { load.smooth };
            }
        }
    }

    /// What was heard so long ago says nothing of now: all are let in. True where that changes anything.
    pub fn forget(&mut self, now: BootTime) -> bool {
        let mut changed = false;
        for load in self.0.values_mut().filter(|l| now.since(l.at) > FORGOTTEN_AFTER && l.counts < 1.0) {
            (load.smooth, load.counts, changed) = (1.0, 1.0, true);
        }
        changed
    }

    /// Above 0.
    #[must_use]
    pub fn capacity(&self, node: &NodeName) -> f64 {
        self.0.get(node).map_or(1.0, |l| f64::from(l.capacity))
    }

    /// Above 0, 1 at most.
    #[must_use]
    pub fn room(&self, node: &NodeName) -> f64 {
        self.0.get(node).map_or(1.0, |l| l.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(load_permille: u16) -> Vec<EdgeStanding> {
        vec![EdgeStanding { node: "e1".parse().unwrap(), attached: true, applied: 1, load_permille, capacity: 8 }]
    }

    fn at(seconds: u64) -> BootTime {
        BootTime::default() + Duration::from_secs(seconds)
    }

    fn is(loads: &Loads, room: f64) -> bool {
        (loads.room(&"e1".parse().unwrap()) - room).abs() < 1e-9
    }

    #[test]
    fn room_follows_load_slowly() {
        let mut loads = Loads::default();
        assert!(is(&loads, 1.0), "nothing is known of it");
        loads.reported(&standing(300), at(0));
        assert!(is(&loads, 1.0));
        // A moment of load is nothing.
        loads.reported(&standing(1000), at(2));
        assert!(is(&loads, 1.0));
        for second in 3..400 {
            loads.reported(&standing(1000), at(second));
        }
        let room = loads.room(&"e1".parse().unwrap());
        assert!(room < 0.2, "{room}");
        // What goes up and down by a little changes nothing.
        for second in 400..500 {
            loads.reported(&standing(if second % 2 == 0 { 1000 } else { 980 }), at(second));
        }
        assert!(is(&loads, room));
        assert!(!loads.forget(at(600)) && loads.forget(at(900)) && is(&loads, 1.0), "nothing new was heard for long");
        for second in 900..1000 {
            loads.reported(&standing(300), at(second));
        }
        assert!(is(&loads, 1.0));
    }
}
