//! Arguments and results of every verb of the control protocol, a file for each group.
//!
//! Values only: what a client may write and what it may rely on to read. Arguments refuse fields that they do not know;
//! results may gain fields. Turning them into acts is the business of whoever answers.

pub mod capture;
pub mod dns;
pub mod life;
pub mod observe;
pub mod ports;
