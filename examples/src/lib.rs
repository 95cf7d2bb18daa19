//! Programs that show kfab.
