//! What a person says about ways: routes to networks we are not on, and which interfaces go together.
//!
//! A routed message keeps its source and destination; only the next hop is the gateway. We route nothing for others.

use std::cmp::Reverse;

use super::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::nid::{Net, Nid, NidList};

/// The most routes of a node.
const MAX_ROUTES: usize = 4096;

/// A way to a network that no interface of ours is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Route {
    /// The network.
    pub net: Net,
    /// A gateway to it, on a network of ours.
    pub gateway: Nid,
    /// How many gateways lie between.
    pub hops: u32,
    /// Smaller is taken first.
    pub priority: u32,
}

impl Engine {
    /// Adds a route, or changes the hops and priority of one. `Invalid` for a network we are on, or a gateway that is on none of
    /// ours, `Busy` if there are too many.
    pub fn add_route(&mut self, route: Route) -> Result<()> {
        let is_ours = |net: Net| self.nis.iter().any(|n| n.config.nid.net() == net);
        if is_ours(route.net) || !is_ours(route.gateway.net()) || self.is_local(route.gateway) {
            let words = format!(
                "{} by {}: the network must be another, the gateway on one of ours",
                route.net, route.gateway
            );
            return Err(Error::new(ErrorKind::Invalid, "route", words));
        }
        self.remove_route(route.net, route.gateway);
        if self.routes.len() >= MAX_ROUTES {
            return Err(Error::new(ErrorKind::Busy, "route", "too many routes"));
        }
        self.routes.push(route);
        Ok(())
    }

    /// Removes a route; whether there was one.
    pub fn remove_route(&mut self, net: Net, gateway: Nid) -> bool {
        let before = self.routes.len();
        self.routes.retain(|r| r.net != net || r.gateway != gateway);
        self.routes.len() < before
    }

    /// All routes.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Sets which interfaces of peers go first with which of ours, as (ours, theirs), where health and priority leave a choice. The
    /// rules replace those before.
    pub fn set_pairs(&mut self, pairs: Vec<(NidList, NidList)>) {
        self.pairs = pairs;
    }

    pub(super) fn is_paired(&self, local: Nid, remote: Nid) -> bool {
        self.pairs.iter().any(|(ours, theirs)| ours.contains(local) && theirs.contains(remote))
    }

    /// The best way to a network we are not on: our NID and the gateway's. Priority, then hops, health, least used.
    pub(super) fn select_route(&mut self, net: Net, pinned: Option<Nid>) -> Option<(Nid, Nid)> {
        let ways: Vec<Route> = self.routes.iter().filter(|r| r.net == net).copied().collect();
        for way in &ways {
            self.peer_for(way.gateway);
        }
        let rank = |r: &&Route| {
            let ni = self.peer_nis.get(&r.gateway);
            (r.priority, r.hops, Reverse(ni.map_or(0, |p| p.health.value)), ni.map_or(0, |p| p.used))
        };
        let mut ways: Vec<&Route> = ways.iter().collect();
        ways.sort_by_key(rank);
        ways.iter().find_map(|r| Some((self.best_local(r.gateway.net(), pinned)?, r.gateway)))
    }
}
