//! Builds the guest's agent and hands it to the library, so that every `kiln` carries its own.
//!
//! The agent is a static program for the guest, with a profile of its own, so it is built by a
//! second cargo with its own target directory (two cargos in one would wait for each other).

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=KILN_AGENT_BINARY");
    println!("cargo::rerun-if-env-changed=KILN_AGENT_TARGET");
    let agent = match env::var_os("KILN_AGENT_BINARY") {
        Some(given) => PathBuf::from(given),
        None => build_agent()?,
    };
    println!("cargo::rerun-if-changed={}", agent.display());
    println!("cargo::rustc-env=KILN_AGENT={}", agent.display());
    Ok(())
}

fn build_agent() -> Result<PathBuf, Box<dyn Error>> {
    let workspace = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?)
        .join("../..")
        .canonicalize()?;
    for source in [
        "crates/kiln-agent",
        "crates/kiln-agent-proto",
        "Cargo.lock",
        "Cargo.toml",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    let target = agent_target()?;
    let target_dir = target_dir()?.join("kiln-agent");
    let status = cargo(&workspace)?
        .args(["build", "--package", "kiln-agent", "--profile", "agent"])
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&target_dir)
        .status()?;
    if !status.success() {
        return Err(format!("building the guest agent for {target} failed ({status})").into());
    }
    Ok(target_dir.join(target).join("agent").join("kiln-agent"))
}

/// A cargo that has inherited nothing of this build but the toolchain: not its flags, and not
/// the wrapper with which clippy replaces the compiler.
fn cargo(workspace: &Path) -> Result<Command, Box<dyn Error>> {
    let mut command = Command::new(env::var("CARGO")?);
    command.current_dir(workspace);
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let foreign = text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_CFG_")
            || text.starts_with("CARGO_FEATURE_")
            || text.starts_with("CARGO_PROFILE_")
            || text.starts_with("CARGO_BUILD_");
        if foreign {
            command.env_remove(&name);
        }
    }
    for name in [
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_TARGET_DIR",
    ] {
        command.env_remove(name);
    }
    // Static: it is the only program in its initramfs. The separator is cargo's own.
    command.env(
        "CARGO_ENCODED_RUSTFLAGS",
        "-C\u{1f}target-feature=+crt-static",
    );
    Ok(command)
}

/// musl where this toolchain has it (smaller), else the host's libc, linked statically.
fn agent_target() -> Result<String, Box<dyn Error>> {
    if let Ok(wanted) = env::var("KILN_AGENT_TARGET") {
        return Ok(wanted);
    }
    let host = env::var("TARGET")?;
    let musl = host.replace("-gnu", "-musl");
    let rustc = env::var("RUSTC")?;
    let asked = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", &musl])
        .output()?;
    let libdir = PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim());
    Ok(if asked.status.success() && libdir.is_dir() {
        musl
    } else {
        host
    })
}

/// `target/`, found from `target/<profile>/build/<crate>-<hash>/out`.
fn target_dir() -> Result<PathBuf, Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let dir = out
        .ancestors()
        .nth(4)
        .ok_or("OUT_DIR is not where cargo puts it")?;
    Ok(dir.to_path_buf())
}
