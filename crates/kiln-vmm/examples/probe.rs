//! Says whether this host's KVM runs guests, and which engine would be chosen.
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use kiln_vmm::probe::probe;
use kiln_vmm::{EnginePreference, SelectOptions, select};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let cache_dir = std::env::temp_dir().join("kiln-probe-example");
    println!("{}", probe(&cache_dir).await);
    let options = SelectOptions {
        firecracker: None,
        qemu: None,
        cache_dir,
        allow_unusable_kvm: false,
        seccomp_filters: None,
    };
    match select(EnginePreference::Auto, &options).await {
        Ok(selection) => println!("{}", selection.reason),
        Err(error) => println!("{error}"),
    }
}
