//! The board this program is built for; `BITNET_BOARD` chooses it.

#![allow(
    missing_docs,
    reason = "written by build.rs: name, bytes of RAM, clock in hertz"
)]

include!(concat!(env!("OUT_DIR"), "/board.rs"));
