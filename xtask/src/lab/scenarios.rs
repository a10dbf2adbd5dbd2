//! What the lab has to be able to do, run by `cargo xtask test`.

use std::path::PathBuf;

use super::{LabError, Options, run_with};
use crate::step;

/// One command in a lab of its own and what it has to answer.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    command: &'static [&'static str],
    needs: &'static [Need],
    exit_code: u8,
    /// What its standard output has to contain.
    says: &'static str,
}

/// What not every machine has.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    Firecracker,
    /// A kernel and an image, as the demo leaves them.
    KilnData,
    /// The tests of this file of `kiln-net`, in `/tests`.
    NetTests(&'static str),
    /// The unit tests of this crate, in `/tests`.
    UnitTests(&'static str),
}

impl Need {
    fn missing(&self) -> Option<&'static str> {
        match self {
            Self::Firecracker if std::env::var_os("KILN_FIRECRACKER").is_none() => {
                Some("KILN_FIRECRACKER is not set")
            }
            Self::KilnData if super::kiln_data().is_empty() => {
                Some("there is no kernel and image yet; cargo xtask demo makes them")
            }
            Self::Firecracker | Self::KilnData | Self::NetTests(_) | Self::UnitTests(_) => None,
        }
    }
}

/// How a scenario ended.
#[derive(Debug)]
pub(crate) enum Verdict {
    Passed,
    Failed(String),
    Skipped(&'static str),
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "output, exit code and KVM come through",
        command: &["sh", "-c", "ls /dev/kvm && echo ok; exit 7"],
        needs: &[],
        exit_code: 7,
        says: "/dev/kvm\nok\n",
    },
    Scenario {
        name: "firecracker runs",
        command: &["firecracker", "--version"],
        needs: &[Need::Firecracker],
        exit_code: 0,
        says: "Firecracker v",
    },
    Scenario {
        name: "kiln boots a guest in Firecracker",
        command: &[
            "kiln",
            "run",
            "--engine",
            "firecracker",
            "--",
            "sh",
            "-c",
            "uname -s; exit 3",
        ],
        needs: &[Need::Firecracker, Need::KilnData],
        exit_code: 3,
        says: "Linux\n",
    },
    Scenario {
        name: "a guest in Firecracker is jailed, adopted, stopped, and leaves nothing",
        command: &["sh", "-ec", LIFE],
        needs: &[Need::Firecracker, Need::KilnData],
        exit_code: 0,
        says: "all held\n",
    },
    Scenario {
        name: "a guest in Firecracker goes on from a snapshot in two sandboxes at once",
        command: &["sh", "-ec", SNAPSHOTS],
        needs: &[Need::Firecracker, Need::KilnData],
        exit_code: 0,
        says: "all held\n",
    },
    Scenario {
        name: "guests in Firecracker share a network, each VMM in a namespace of its own",
        command: &["sh", "-ec", NEIGHBOURS],
        needs: &[Need::Firecracker, Need::KilnData],
        exit_code: 0,
        says: "all held\n",
    },
    Scenario {
        name: "networks leave by WireGuard to a real peer, or not at all",
        command: &["sh", "-c", WIREGUARD],
        needs: &[Need::NetTests("wireguard")],
        exit_code: 0,
        says: "test result: ok",
    },
    Scenario {
        name: "a Linux guest in Firecracker: metadata, drives, balloon, snapshots, pages, jail",
        command: &[
            "sh",
            "-ec",
            "KILN_LAB=1 /tests/kiln --nocapture --exact \
             guest::tests::lab::a_linux_guest_on_the_real_firecracker",
        ],
        needs: &[Need::Firecracker, Need::KilnData, Need::UnitTests("kiln")],
        exit_code: 0,
        says: "all of Firecracker held\n",
    },
];

/// A test that finds no WireGuard in its kernel says so: here there is one.
const WIREGUARD: &str = r#"
/tests/wireguard --nocapture --test-threads=1 > /tmp/told 2>&1
code=$?
cat /tmp/told
if grep SKIPPED /tmp/told >&2; then exit 1; fi
exit $code
"#;

/// A sandbox's life on the real engine, as a user would live it.
const LIFE: &str = r#"
id=$(kiln run --detach --engine firecracker -- sleep 1000)
vmm=$(kiln ps --json | sed 's/.*"pid":\([0-9]*\).*/\1/')
test "$(kiln ps --json | grep -c '"unprotected":\[\]')" = 1
grep -q '^Seccomp:.2' /proc/$vmm/status
grep -q '^CapEff:.0000000000000000' /proc/$vmm/status
grep -q '^NoNewPrivs:.1' /proc/$vmm/status
! grep -q '^Uid:.0' /proc/$vmm/status
head -c 3000000 /dev/urandom > /tmp/sent
kiln exec --interactive $id -- cat < /tmp/sent > /tmp/back
cmp /tmp/sent /tmp/back
daemon=$(kiln info --json | sed 's/.*"daemon_pid":\([0-9]*\).*/\1/')
kill -9 $daemon
test "$(kiln exec $id -- echo adopted)" = adopted
kiln stop $id
kiln rm $id
test ! -e /proc/$vmm
for dir in /run/kiln/vm /var/lib/kiln/sandboxes /var/lib/kiln/jails/firecracker; do
    test -z "$(ls -A $dir 2>/dev/null)"
done
echo all held
"#;

/// Snapshots on the real engine: memory, disk and network go on, apart from each other, jailed as any.
const SNAPSHOTS: &str = r#"
count='i=0; while :; do i=$((i+1)); echo $i > /tmp/n; mv /tmp/n /tmp/count; sleep 0.1; done'
kiln run --detach --name source -m 128 --engine firecracker -- sh -c "$count" > /dev/null
refused() { if "$@" 2> /tmp/refusal; then echo "not refused: $*"; exit 1; fi; }
at() { kiln exec $1 -- sh -c 'while ! test -s /tmp/count; do sleep 0.1; done; cat /tmp/count'; }
kiln exec source -- sh -c 'echo kept > /root/kept'
then=$(at source)
kiln snapshot create source --name golden > /dev/null
test $(at source) -ge $then
for name in one two; do
    kiln create --snapshot golden --name $name > /dev/null
done
kiln start one two > /dev/null
for name in one two; do
    test $(at $name) -ge $then
    test "$(kiln exec $name -- cat /root/kept)" = kept
    test "$(kiln exec $name -- hostname)" = $name
    kiln exec $name -- sh -c "echo $name > /root/own"
done
test "$(kiln exec one -- cat /root/own)" = one
test "$(kiln exec two -- cat /root/own)" = two
refused kiln exec source -- cat /root/own
kiln ps --json > /tmp/all
grep -q '"unprotected":\[\]' /tmp/all
refused grep '"unprotected":\["' /tmp/all
refused kiln snapshot rm golden
grep -q SNAPSHOT_IN_USE /tmp/refusal
# One that was restored can be captured too.
kiln snapshot create one --name second > /dev/null
test "$(kiln run --snapshot second -- cat /root/own)" = one
kill -9 $(kiln info --json | sed 's/.*"daemon_pid":\([0-9]*\).*/\1/')
test "$(kiln exec two -- cat /root/own)" = two
kiln rm -f one two source > /dev/null
kiln snapshot rm golden second > /dev/null
for dir in /run/kiln/vm /var/lib/kiln/sandboxes /var/lib/kiln/snapshots /var/lib/kiln/jails/firecracker; do
    test -z "$(ls -A $dir 2>/dev/null)"
done
echo all held
"#;

/// Two members of one network on the real engine, whose jailer puts each where its TAP is.
const NEIGHBOURS: &str = r#"
kiln network create lan --members-talk > /dev/null
kiln run --detach --name one -m 128 --engine firecracker --network lan -- sleep 1000 > /dev/null
kiln run --detach --name two -m 128 --engine firecracker --network lan --bandwidth 8mbit/4mbit \
    -- sleep 1000 > /dev/null
kiln exec one -- ping -c 1 -w 5 172.30.0.3 > /dev/null
kiln exec two -- ping -c 1 -w 5 172.30.0.2 > /dev/null
nft list ruleset | grep -q 'limit rate over 500'
own=$(readlink /proc/self/ns/net)
for vmm in $(kiln ps --json | sed 's/,/\n/g' | sed -n 's/.*"pid":\([0-9]*\).*/\1/p'); do
    test "$(readlink /proc/$vmm/ns/net)" != "$own"
    test -z "$(grep -v Iface /proc/$vmm/net/route)"
    seen=x$seen
done
test "$seen" = xx
kill -9 $(kiln info --json | sed 's/.*"daemon_pid":\([0-9]*\).*/\1/')
kiln network update two --bandwidth 2mbit > /dev/null
nft list ruleset | grep -q 'limit rate over 250'
kiln rm -f one two > /dev/null
kiln network rm lan
test -z "$(ip -o link | grep klnt)"
echo all held
"#;

/// Builds a file of tests; where its program is.
fn net_tests(file: &str) -> Result<PathBuf, LabError> {
    built(file, &["-p", "kiln-net", "--test", file])
}

/// Builds the unit tests of a crate, optimised: in the lab the rest would take minutes.
fn unit_tests(package: &str) -> Result<PathBuf, LabError> {
    built(package, &["--release", "-p", package, "--lib"])
}

fn built(file: &str, of: &[&str]) -> Result<PathBuf, LabError> {
    let build = ["test", "--locked", "--no-run", "--message-format=json"];
    let told = step::capture(step::cargo(build).args(of))?;
    let built = String::from_utf8_lossy(&told)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == file)
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
    built.ok_or_else(|| LabError::NoTests {
        file: file.to_owned(),
    })
}

impl Scenario {
    pub(crate) fn run(&self) -> Result<Verdict, LabError> {
        if let Some(why) = self.needs.iter().find_map(Need::missing) {
            return Ok(Verdict::Skipped(why));
        }
        let mut tests = Vec::new();
        for need in self.needs {
            let (name, program) = match need {
                Need::NetTests(file) => (file, net_tests(file)?),
                Need::UnitTests(package) => (package, unit_tests(package)?),
                Need::Firecracker | Need::KilnData => continue,
            };
            tests.push(format!("{}:/tests/{name}", program.display()));
        }
        let options = Options {
            mem_mib: 1536,
            cpus: 1,
            disk_mib: 2048,
            timeout_s: 300,
            add: tests,
            no_build: true,
            no_data: !self.needs.contains(&Need::KilnData),
            command: self.command.iter().map(|word| (*word).to_owned()).collect(),
        };
        let (code, stdout, stderr) = run_with(&options, Vec::new(), Vec::new())?;
        Ok(self.judge(code, &stdout, &stderr))
    }

    fn judge(&self, code: u8, stdout: &[u8], stderr: &[u8]) -> Verdict {
        let stdout = String::from_utf8_lossy(stdout);
        if code == self.exit_code && stdout.contains(self.says) {
            return Verdict::Passed;
        }
        let stderr = String::from_utf8_lossy(stderr);
        Verdict::Failed(format!(
            "exit code {code} instead of {}, said {stdout:?} and {stderr:?}",
            self.exit_code
        ))
    }
}
