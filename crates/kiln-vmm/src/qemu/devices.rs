//! What QEMU's devices are asked by QMP while a guest runs.
//!
//! Devices are found by names that hold the caller's ids, so that an adopted machine needs no
//! list of them.

use std::os::fd::{AsFd, OwnedFd};

use serde_json::{Value, json};

use super::ANSWER;
use super::args::{BALLOON, DISK_DEVICE, DISK_NODE};
use super::qmp::{Qmp, QmpError};
use crate::metrics::{DiskMetrics, Metrics};
use crate::nic::{RateLimit, TokenBucket};
use crate::options::BalloonState;

/// Whether the guest may only read a disk; `None` when there is no such disk.
pub(super) async fn disk_is_read_only(qmp: &Qmp, id: &str) -> Result<Option<bool>, QmpError> {
    let node = node(qmp, id).await?;
    Ok(node.and_then(|node| node["ro"].as_bool()))
}

async fn node(qmp: &Qmp, id: &str) -> Result<Option<Value>, QmpError> {
    let nodes = run(qmp, "query-named-block-nodes", json!({ "flat": true })).await?;
    let name = format!("{DISK_NODE}{id}");
    let mut nodes = nodes.as_array().into_iter().flatten();
    Ok(nodes.find(|node| node["node-name"] == *name).cloned())
}

/// Puts another file under a disk and tells the guest of its size.
pub(super) async fn replace_disk(
    qmp: &Qmp,
    id: &str,
    file: OwnedFd,
    read_only: bool,
) -> Result<(), QmpError> {
    let set = qmp.add_fd(file.as_fd(), ANSWER).await?;
    let name = format!("{DISK_NODE}{id}");
    let file_node = format!("file{set}");
    let add = json!({
        "driver": "file", "node-name": file_node, "filename": format!("/dev/fdset/{set}"),
        "read-only": read_only, "discard": "unmap",
    });
    run(qmp, "blockdev-add", add).await?;
    let reopen = json!({ "options": [{
        "driver": "raw", "node-name": name, "read-only": read_only, "discard": "unmap",
        "file": file_node,
    }]});
    if let Err(error) = run(qmp, "blockdev-reopen", reopen).await {
        // Nothing uses it: the disk has its old file still.
        let _ = run(qmp, "blockdev-del", json!({ "node-name": file_node })).await;
        return Err(error);
    }
    if read_only {
        return Ok(());
    }
    // A resize to the size that it has reaches the guest and nothing else.
    let size = node(qmp, id)
        .await?
        .and_then(|node| node["image"]["virtual-size"].as_u64());
    if let Some(size) = size {
        run(
            qmp,
            "block_resize",
            json!({ "node-name": name, "size": size }),
        )
        .await?;
    }
    Ok(())
}

/// Limits a disk.
pub(super) async fn limit_disk(qmp: &Qmp, id: &str, limit: RateLimit) -> Result<(), QmpError> {
    let (bps, bps_max) = rate(limit.bandwidth);
    let (iops, iops_max) = rate(limit.ops);
    let mut throttle = json!({
        "id": format!("{DISK_DEVICE}{id}"),
        "bps": bps, "bps_rd": 0, "bps_wr": 0, "iops": iops, "iops_rd": 0, "iops_wr": 0,
    });
    if bps > 0 {
        throttle["bps_max"] = json!(bps_max.max(bps));
    }
    if iops > 0 {
        throttle["iops_max"] = json!(iops_max.max(iops));
    }
    run(qmp, "block_set_io_throttle", throttle).await.map(drop)
}

/// Tokens per second, and at most at once.
fn rate(bucket: Option<TokenBucket>) -> (u64, u64) {
    match bucket {
        Some(bucket) if bucket.size > 0 && bucket.refill_ms > 0 => {
            let rate = bucket.size.saturating_mul(1000) / bucket.refill_ms;
            let most = bucket
                .size
                .saturating_add(bucket.one_time_burst.unwrap_or(0));
            (rate.max(1), most)
        }
        Some(_) | None => (0, 0),
    }
}

/// Says how much memory the guest shall give back.
pub(super) async fn set_balloon(qmp: &Qmp, amount_mib: u32) -> Result<(), QmpError> {
    let memory = memory_bytes(qmp).await?;
    let left = memory.saturating_sub(u64::from(amount_mib) << 20);
    run(qmp, "balloon", json!({ "value": left }))
        .await
        .map(drop)
}

pub(super) async fn balloon(qmp: &Qmp) -> Result<BalloonState, QmpError> {
    let memory = memory_bytes(qmp).await?;
    let left = run(qmp, "query-balloon", Value::Null).await?;
    let given = memory.saturating_sub(left["actual"].as_u64().unwrap_or(memory)) >> 20;
    let asked = json!({
        "path": format!("/machine/peripheral/{BALLOON}"), "property": "guest-stats",
    });
    let stats = run(qmp, "qom-get", asked).await?;
    let stat = |name: &str| {
        // The highest number stands for one that the guest does not tell.
        let value = stats["stats"][name].as_u64();
        value.filter(|value| *value != u64::MAX)
    };
    Ok(BalloonState {
        // QEMU does not keep what it was asked for.
        target_mib: given,
        actual_mib: given,
        free_bytes: stat("stat-free-memory"),
        available_bytes: stat("stat-available-memory"),
        total_bytes: stat("stat-total-memory"),
    })
}

async fn memory_bytes(qmp: &Qmp) -> Result<u64, QmpError> {
    let summary = run(qmp, "query-memory-size-summary", Value::Null).await?;
    Ok(summary["base-memory"].as_u64().unwrap_or(0))
}

/// Asks the guest for its statistics every so often.
pub(super) async fn poll_balloon(qmp: &Qmp, interval_s: u16) -> Result<(), QmpError> {
    let set = json!({
        "path": format!("/machine/peripheral/{BALLOON}"),
        "property": "guest-stats-polling-interval", "value": interval_s,
    });
    run(qmp, "qom-set", set).await.map(drop)
}

pub(super) async fn metrics(qmp: &Qmp) -> Result<Metrics, QmpError> {
    let answer = run(qmp, "query-blockstats", Value::Null).await?;
    Ok(metrics_of(&answer))
}

fn metrics_of(answer: &Value) -> Metrics {
    let mut metrics = Metrics::default();
    for device in answer.as_array().into_iter().flatten() {
        let path = device["qdev"].as_str().unwrap_or_default();
        let id = path
            .split('/')
            .find_map(|part| part.strip_prefix(DISK_DEVICE));
        let Some(id) = id else {
            continue;
        };
        let of = |name: &str| device["stats"][name].as_u64().unwrap_or(0);
        metrics.disks.insert(
            id.to_owned(),
            DiskMetrics {
                read_bytes: of("rd_bytes"),
                write_bytes: of("wr_bytes"),
                read_count: of("rd_operations"),
                write_count: of("wr_operations"),
                flush_count: of("flush_operations"),
                throttled: 0,
                failures: of("failed_rd_operations") + of("failed_wr_operations"),
            },
        );
    }
    metrics
}

pub(super) async fn run(qmp: &Qmp, command: &str, arguments: Value) -> Result<Value, QmpError> {
    qmp.command(command, arguments, ANSWER).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_a_rate_and_a_burst() {
        let bucket = |size, refill_ms, one_time_burst| {
            rate(Some(TokenBucket {
                size,
                one_time_burst,
                refill_ms,
            }))
        };
        assert_eq!(bucket(1000, 100, None), (10_000, 1000));
        assert_eq!(bucket(1, 5000, Some(7)), (1, 8));
        assert_eq!(bucket(0, 100, None), (0, 0));
        assert_eq!(bucket(u64::MAX, 0, None), (0, 0));
        assert_eq!(rate(None), (0, 0));
    }

    #[test]
    fn statistics_are_found_by_the_id_of_the_disk() {
        let answer = json!([
            {"qdev": "/machine/peripheral/blk-root/virtio-backend",
             "stats": {"rd_bytes": 512, "wr_operations": 2, "failed_rd_operations": 1}},
            {"device": "other", "stats": {}},
        ]);
        let metrics = metrics_of(&answer);
        assert_eq!(metrics.disks.len(), 1);
        assert_eq!(metrics.disks["root"].read_bytes, 512);
        assert_eq!(metrics.disks["root"].failures, 1);
        assert_eq!(metrics_of(&Value::Null), Metrics::default());
    }
}
