//! Limits on what a link sends: a token bucket as its queue. Pure.

use rustix::io::Errno;

use super::steps::Steps;
use crate::netlink::{ACK, CREATE, REPLACE};
use crate::policy::Rate;

const NEW_QDISC: u16 = 36;
const DELETE_QDISC: u16 = 37;
const ROOT_QDISC: u32 = 0xffff_ffff;
const QDISC_HANDLE: u32 = 0x1_0000;

impl Steps {
    /// Limit what a link sends.
    pub(crate) fn shape(&mut self, index: u32, rate: Rate) {
        let bytes_per_second = rate.bytes_per_second();
        let burst = burst(bytes_per_second);
        let header = qdisc(index);
        self.batch.message(
            "limit bandwidth",
            NEW_QDISC,
            ACK | CREATE | REPLACE,
            &header,
            |a| {
                a.text(1, "tbf").nest(2, |options| {
                    options.bytes(1, &tbf_parameters(bytes_per_second, burst));
                    if bytes_per_second > u64::from(u32::MAX) {
                        options.bytes(4, &bytes_per_second.to_ne_bytes());
                    }
                    options.u32(6, burst);
                });
            },
        );
    }

    /// Remove the limit.
    pub(crate) fn unshape(&mut self, index: u32) {
        self.batch.message(
            "lift a bandwidth limit",
            DELETE_QDISC,
            ACK,
            &qdisc(index),
            |_| {},
        );
        // There is none, or one that is not ours.
        self.batch.tolerate(Errno::NOENT);
        self.batch.tolerate(Errno::INVAL);
    }
}

/// About 10 ms of traffic, and never less than a few full frames after segmentation offload.
fn burst(bytes_per_second: u64) -> u32 {
    u32::try_from((bytes_per_second / 100).clamp(32 << 10, 4 << 20)).unwrap_or(u32::MAX)
}

/// `struct tc_tbf_qopt`: rate, peak rate, limit, buffer in ticks of 64 ns, mtu.
fn tbf_parameters(bytes_per_second: u64, burst: u32) -> [u8; 36] {
    const ETHERNET: u8 = 1;
    let rate = u32::try_from(bytes_per_second).unwrap_or(u32::MAX);
    // At most 50 ms of queue beyond the burst.
    let queue = (bytes_per_second / 20).clamp(64 << 10, 64 << 20);
    let limit = u32::try_from(queue)
        .unwrap_or(u32::MAX)
        .saturating_add(burst);
    let burst_ns = u64::from(burst) * 1_000_000_000 / bytes_per_second.max(1);
    let ticks = u32::try_from(burst_ns >> 6).unwrap_or(u32::MAX);
    let mut parameters = [0; 36];
    parameters[1] = ETHERNET;
    parameters[8..12].copy_from_slice(&rate.to_ne_bytes());
    parameters[24..28].copy_from_slice(&limit.to_ne_bytes());
    parameters[28..32].copy_from_slice(&ticks.to_ne_bytes());
    parameters
}

fn qdisc(index: u32) -> [u8; 20] {
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&QDISC_HANDLE.to_ne_bytes());
    header[12..16].copy_from_slice(&ROOT_QDISC.to_ne_bytes());
    header
}
