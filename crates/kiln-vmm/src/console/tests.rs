use proptest::prelude::*;

use super::*;

fn read_all(mut read: impl FnMut(u64) -> Chunk) -> (u64, Vec<u8>) {
    let first = read(0);
    let start = first.offset;
    let mut bytes = first.bytes;
    loop {
        let chunk = read(start + bytes.len() as u64);
        if chunk.bytes.is_empty() {
            return (start, bytes);
        }
        bytes.extend(chunk.bytes);
    }
}

#[test]
fn keeps_the_newest_bytes_and_never_more_than_two_segments() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    let log = ConsoleLog::open(&path).unwrap();
    let line: Vec<u8> = (0..=255).collect();
    for _ in 0..(5 * SEGMENT_BYTES / 256) {
        log.append(&line);
    }
    log.append(b"last words");

    let end = log.follow().borrow().offset;
    assert_eq!(end, 5 * SEGMENT_BYTES + 10);
    let (start, bytes) = read_all(|offset| log.read(offset, 300_000).unwrap());
    assert_eq!(start, 4 * SEGMENT_BYTES);
    assert_eq!(bytes.len() as u64, SEGMENT_BYTES + 10);
    assert!(bytes.ends_with(b"last words"));
    assert!(log.tail().ends_with(b"last words"));
    assert_eq!(log.tail().len(), TAIL_BYTES);
    let on_disk: u64 = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(on_disk <= 2 * SEGMENT_BYTES);

    let reader = ConsoleReader::open(&path).unwrap();
    let (start, again) = read_all(|offset| reader.read(offset, 100_000).unwrap());
    assert_eq!((start, again), (0, bytes));
}

#[test]
fn goes_on_behind_what_an_earlier_owner_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    ConsoleLog::open(&path).unwrap().append(b"before ");
    let log = ConsoleLog::open(&path).unwrap();
    log.append(b"after");
    assert_eq!(log.read(0, 100).unwrap().bytes, b"before after");
    assert_eq!(log.tail(), b"before after");
}

#[test]
fn a_file_that_cannot_grow_does_not_stop_the_guest() {
    // Every write to /dev/full fails with ENOSPC.
    if !Path::new("/dev/full").exists() {
        eprintln!("SKIPPED: a_file_that_cannot_grow_does_not_stop_the_guest: no /dev/full");
        return;
    }
    let log = ConsoleLog::open("/dev/full").unwrap();
    log.append(b"unwritten");
    assert_eq!(log.lost_bytes(), 9);
    assert_eq!(log.tail(), b"unwritten");
}

#[test]
fn a_planted_link_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
    assert!(ConsoleLog::open(&path).is_err());
}

#[tokio::test]
async fn a_follower_hears_of_growth_and_of_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = ConsoleLog::open(dir.path().join("console")).unwrap();
    let mut follower = log.follow();
    let writer = tokio::spawn({
        let log = log.clone();
        async move {
            log.append(b"hello");
            log.close();
        }
    });
    let end = *follower.wait_for(|end| end.closed).await.unwrap();
    assert_eq!(end.offset, 5);
    writer.await.unwrap();
}

#[test]
fn a_machine_that_never_printed_reads_as_empty() {
    let dir = tempfile::tempdir().unwrap();
    let reader = ConsoleReader::open(&dir.path().join("none")).unwrap();
    assert_eq!(reader.read(0, 10).unwrap(), Chunk::default());
}

proptest! {
    #[test]
    fn the_tail_is_the_end_of_everything(pieces in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..40), 0..20), limit in 0_usize..50)
    {
        let mut tail = Tail::new(limit);
        let mut all = Vec::new();
        for piece in &pieces {
            tail.push(piece);
            all.extend_from_slice(piece);
        }
        let kept = &all[all.len().saturating_sub(limit)..];
        prop_assert_eq!(tail.to_vec(), kept);
    }
}
