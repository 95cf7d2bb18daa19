//! The provider contract, memory and rings that kfab and its providers share.
