//! kfab provider: sim.
