//! The local cluster: a real Kubernetes in one network namespace of this machine.
//!
//! Owns: starting, stopping and inspecting it. Must not: install Fairlead. Called by the binary's `up`, `down`, `status`
//! and `logs`, and by the quickstart. Pure modules say what should be (address_plan, configs, programs, certificates,
//! kubeconfig); the others make it so.

pub mod addons;
pub mod address_plan;
pub mod certificates;
pub mod cgroups;
pub mod configs;
pub mod containerd;
pub mod down;
pub mod forwarder;
pub mod kubeconfig;
pub mod layout;
pub mod leftovers;
pub mod lock;
pub mod namespace;
pub mod owner;
pub mod preflight;
pub mod process;
pub mod programs;
pub mod status;
pub mod sysctl;
pub mod up;
