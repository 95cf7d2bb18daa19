//! kfab provider: sockets.
