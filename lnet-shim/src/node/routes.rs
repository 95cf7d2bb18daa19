//! What a person says about ways: routes to networks we are not on, and which interfaces go together.
//!
//! A routed message keeps its source and destination; only the next hop is the gateway. Gateways are asked about themselves every
//! [`super::NodeParams::router_check_interval`], and one that does not answer loses health even with a single interface: there are others.
//! We route nothing for others.

use std::cmp::Reverse;

use super::Time;
use super::engine::Engine;
use super::health::MAX_HEALTH;
use super::peers::PeerId;
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

/// A route, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct RouteInfo {
    /// The route.
    #[serde(flatten)]
    pub route: Route,
    /// As far as we know the gateway passes messages on to there. One that has said otherwise is not taken.
    pub up: bool,
    /// The health of the gateway's interface.
    pub health: u32,
}

/// What a node has said about itself that matters where it is a gateway.
pub(super) struct Said {
    /// It routes.
    pub(super) routes: bool,
    /// Networks where an interface of it works.
    pub(super) nets: Vec<Net>,
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
        // At once: whether it leads anywhere.
        self.next_route_check = Time::ZERO;
        Ok(())
    }

    /// Removes a route; whether there was one.
    pub fn remove_route(&mut self, net: Net, gateway: Nid) -> bool {
        let before = self.routes.len();
        self.routes.retain(|r| r.net != net || r.gateway != gateway);
        self.routes.len() < before
    }

    /// All routes.
    pub fn routes(&self) -> Vec<RouteInfo> {
        let health = |r: &Route| self.peer_nis.get(&r.gateway).map_or(MAX_HEALTH, |p| p.health.value);
        let info = |r: &Route| RouteInfo { route: *r, up: self.leads(r), health: health(r) };
        self.routes.iter().map(info).collect()
    }

    /// Sets which gateways are taken first to which destinations, as (destinations, gateways). The rules replace those before.
    pub fn set_preferred_gateways(&mut self, rules: Vec<(NidList, NidList)>) {
        self.preferred_gateways = rules;
    }

    /// Sets which interfaces of peers go first with which of ours, as (ours, theirs), where health and priority leave a choice. The
    /// rules replace those before.
    pub fn set_pairs(&mut self, pairs: Vec<(NidList, NidList)>) {
        self.pairs = pairs;
    }

    pub(super) fn is_paired(&self, local: Nid, remote: Nid) -> bool {
        self.pairs.iter().any(|(ours, theirs)| ours.contains(local) && theirs.contains(remote))
    }

    pub(super) fn is_gateway(&self, nid: Nid) -> bool {
        self.routes.iter().any(|r| r.gateway == nid)
    }

    /// How many routes go where `nid` is.
    pub(super) fn routes_to(&self, nid: Nid) -> usize {
        self.routes.iter().filter(|r| r.net == nid.net()).count()
    }

    /// The gateway has not said that it does not route, or, as the last one, that it is not on that network.
    fn leads(&self, route: &Route) -> bool {
        let peer = self.peer_nis.get(&route.gateway).and_then(|p| self.peers.get(&p.peer));
        let said = peer.and_then(|p| p.said.as_ref());
        said.is_none_or(|s| s.routes && (route.hops > 1 || s.nets.contains(&route.net)))
    }

    /// When gateways are to be asked again.
    pub(super) fn route_check_due(&self) -> Option<Time> {
        let asks = self.params.discovery && !self.routes.is_empty();
        asks.then_some(self.next_route_check)
    }

    /// Asks the gateways about themselves, if it is time.
    pub(super) fn check_routes(&mut self, now: Time) {
        if self.route_check_due().is_none_or(|at| now < at) {
            return;
        }
        self.next_route_check = now + self.params.router_check_interval;
        let mut gateways: Vec<Nid> = self.routes.iter().map(|r| r.gateway).collect();
        gateways.sort();
        gateways.dedup();
        let gateways: Vec<PeerId> = gateways.into_iter().filter_map(|g| self.peer_for(g)).collect();
        for id in gateways {
            self.start_discovery(now, id, false);
        }
    }

    /// The best way to somebody on a network we are not on: our NID and the gateway's. Preferred gateways, then priority, hops, health,
    /// credits, least used.
    pub(super) fn select_route(
        &mut self,
        dest: Nid,
        pinned: Option<Nid>,
        memory: Option<u32>,
    ) -> Option<(Nid, Nid)> {
        let ways = self.routes.iter().filter(|r| r.net == dest.net() && self.leads(r));
        let ways: Vec<Route> = ways.copied().collect();
        for way in &ways {
            self.peer_for(way.gateway);
        }
        let here = self.preferred_gateways.iter().filter(|(dests, _)| dests.contains(dest));
        let first: Vec<&NidList> = here.map(|(_, gateways)| gateways).collect();
        let rank = |r: &&Route| {
            let apart = !first.iter().any(|list| list.contains(r.gateway));
            let ni = self.peer_nis.get(&r.gateway);
            let free = ni.map(|p| (Reverse(p.health.value), Reverse(p.credits.left), p.used));
            (apart, r.priority, r.hops, free)
        };
        let mut ways: Vec<&Route> = ways.iter().collect();
        ways.sort_by_key(rank);
        let local = |r: &Route| self.best_local(r.gateway.net(), pinned, memory);
        let best = ways.iter().find_map(|r| Some((local(r)?, r.gateway)));
        let (local, gateway) = best?;
        let peer = self.peer_nis.get(&gateway)?.peer;
        self.note_use(local, gateway, peer);
        Some((local, gateway))
    }
}
