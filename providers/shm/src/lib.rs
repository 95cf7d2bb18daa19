//! kfab provider: shm.
