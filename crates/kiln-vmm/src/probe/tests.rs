use super::*;

#[tokio::test]
async fn this_host_gets_a_verdict_and_the_second_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let verdict = probe(dir.path()).await;
    eprintln!("this host: {verdict}");
    if loaded_modules() == "kvm_pvm" {
        assert!(
            matches!(verdict, KvmVerdict::EmulatesOnly { pvm: true, .. }),
            "{verdict:?}"
        );
        assert!(verdict.to_string().contains("PVM"));
    }
    assert_eq!(verdict.is_lasting(), dir.path().join(CACHE).exists());
    assert_eq!(probe(dir.path()).await, verdict);
}

#[test]
fn a_device_that_cannot_be_opened_is_told_by_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        check_device(&dir.path().join("kvm")),
        Err(KvmVerdict::Missing)
    );
    assert!(matches!(
        check_device(dir.path()),
        Err(KvmVerdict::Unopenable { .. })
    ));
    assert!(KvmVerdict::Denied.to_string().contains("group kvm"));
    assert!(
        KvmVerdict::OldApi { version: 11 }
            .to_string()
            .contains("11")
    );
}

#[test]
fn a_cached_verdict_spares_the_run() {
    if check_device(Path::new("/dev/kvm")).is_err() {
        eprintln!("SKIPPED: a_cached_verdict_spares_the_run: /dev/kvm does not open");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let planted = KvmVerdict::EmulatesOnly {
        symptom: Symptom::Exit(99),
        pvm: false,
    };
    boot_cache::write(dir.path(), CACHE, &loaded_modules(), &planted);
    assert_eq!(probe_now(dir.path()), planted);
}
