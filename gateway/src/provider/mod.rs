//! Servers of others that speak OpenAI's API (`spec.backends[].provider`).
//!
//! What goes to them is the request without what only our pods know and without whose it is ([`body`]), under the gateway's own
//! key ([`target`]); what comes back has the route's name for the model ([`rename`]) and errors in our words ([`errors`]).
//! Keys are in no log and no error. [`hosts`] says which may be called. Credentials are read by `sources`; `snapshot` builds
//! targets, `forward` uses them. Whether one can be called is kept in its [`health`], by what requests and the looks of [`check`] meet;
//! [`report`] tells the operator.

pub mod body;
pub mod check;
pub mod credentials;
pub mod errors;
pub mod failure;
pub mod health;
pub mod hosts;
pub mod rename;
pub mod report;
pub mod resolver;
pub mod target;
