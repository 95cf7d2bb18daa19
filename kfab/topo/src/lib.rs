//! Cores, caches, NUMA nodes and device locality; binding.
