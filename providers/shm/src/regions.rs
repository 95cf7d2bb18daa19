//! Slabs of ours that peers may map for single transfers: region id to secret. A region is listed while it lives; peers that
//! mapped it are told when it is gone, so that its pages go back to the system.

use crate::ctl;
use crate::port::ShmPort;
use crate::wire::Msg;
use kfab_core::Result;
use kfab_core::auth::random_u64;
use kfab_core::mem::Region;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

struct Listed {
    region: Weak<Region>,
    secret: u64,
}

/// The slabs that peers may ask for.
#[derive(Default)]
pub(crate) struct Regions {
    listed: HashMap<u64, Listed>,
    /// The one asked for last, and its secret: most sends lie in the slab of the one before. A number names one region for ever.
    last: Option<(u64, u64)>,
}

/// A random number that is not 0, which stands for "none".
pub(crate) fn secret() -> Result<u64> {
    loop {
        match random_u64()? {
            0 => continue,
            n => return Ok(n),
        }
    }
}

impl Regions {
    /// The secret of a region, new if it is not listed yet.
    #[inline]
    pub(crate) fn secret_of(&mut self, region: &Arc<Region>) -> Result<u64> {
        if let Some((id, secret)) = self.last
            && id == region.id()
        {
            return Ok(secret);
        }
        let secret = match self.listed.get(&region.id()) {
            Some(l) => l.secret,
            None => {
                let secret = secret()?;
                self.listed.insert(region.id(), Listed { region: Arc::downgrade(region), secret });
                secret
            }
        };
        self.last = Some((region.id(), secret));
        Ok(secret)
    }

    /// The region that a peer asks for, if it knows the secret.
    pub(crate) fn get(&self, id: u64, secret: u64) -> Option<Arc<Region>> {
        self.listed.get(&id).filter(|l| l.secret == secret)?.region.upgrade()
    }

    /// Drops the regions that are gone; their ids.
    fn sweep(&mut self) -> Vec<u64> {
        let mut gone = Vec::new();
        self.listed.retain(|id, l| {
            let lives = l.region.strong_count() > 0;
            if !lives {
                gone.push(*id);
            }
            lives
        });
        gone
    }
}

impl ShmPort {
    /// Tells peers which of the slabs they have mapped are gone.
    pub(crate) fn regions_sweep(&mut self) {
        let gone = self.regions.sweep();
        if gone.is_empty() {
            return;
        }
        for (_, link) in self.conns.links() {
            for id in gone.iter().filter(|id| link.granted.remove(id)) {
                // If its socket is full the mapping stays until it is the oldest of too many, or the connection ends.
                let _ = ctl::send(&link.socket, &Msg::Forget { id: *id }, &[]);
            }
        }
    }
}
