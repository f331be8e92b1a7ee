//! The extension module `connlib._native`: exports only. What each class is for stands in `_native.pyi`.

mod allocator;
mod arguments;
mod batch;
mod boot_timer;
mod call_error;
mod classes;
mod descriptors;
mod encryption;
mod errors;
mod flow_output;
mod fork;
mod guard;
mod index_table;
mod key_log;
mod key_material;
mod lab_node;
mod lab_tunn;
mod lane;
mod node;
mod node_config;
mod node_output;
mod pace;
mod panics;
mod policy;
mod preshared_key;
mod private_key;
mod public_key;
mod pump;
mod rate_limiter;
mod results;
mod rights;
mod time;
mod timestamps;
mod tun_io;
mod tunn;
mod tunn_options;
mod tunnels;
mod turn;
mod udp_io;
mod upstream_engine;
mod upstream_tunn;
mod worker;

#[pyo3::pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use crate::boot_timer::BootTimer;
    #[pymodule_export]
    use crate::encryption::Encryption;
    #[pymodule_export]
    use crate::index_table::IndexTable;
    #[pymodule_export]
    use crate::lab_node::LabNode;
    #[pymodule_export]
    use crate::lab_tunn::LabTunn;
    #[pymodule_export]
    use crate::node::Node;
    #[pymodule_export]
    use crate::policy::CompiledPolicy;
    #[pymodule_export]
    use crate::preshared_key::PresharedKey;
    #[pymodule_export]
    use crate::private_key::PrivateKey;
    #[pymodule_export]
    use crate::public_key::PublicKey;
    #[pymodule_export]
    use crate::pump::Pump;
    #[pymodule_export]
    use crate::rate_limiter::RateLimiter;
    #[pymodule_export]
    use crate::tun_io::TunIo;
    #[pymodule_export]
    use crate::tunn::Tunn;
    #[pymodule_export]
    use crate::tunnels::Tunnels;
    #[pymodule_export]
    use crate::udp_io::UdpIo;
    #[pymodule_export]
    use crate::upstream_tunn::UpstreamTunn;
    #[pymodule_export]
    use crate::worker::Worker;
}
