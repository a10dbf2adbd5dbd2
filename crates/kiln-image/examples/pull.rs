//! Pulls an image into a library and says how long it took: `pull <library> <image>`.
#![allow(clippy::print_stdout, reason = "an example's output")]

use std::error::Error;
use std::time::Instant;

use kiln_image::Silent;
use kiln_image::credentials::Keyring;
use kiln_image::library::{ImageLibrary, LibraryConfig, PullPolicy, PullRequest};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, image] = &arguments[..] else {
        return Err("usage: pull <library> <image>".into());
    };
    let library = ImageLibrary::open(root, LibraryConfig::default())?;
    let request = PullRequest {
        policy: PullPolicy::Always,
        keyring: Keyring::of_user(),
        ..PullRequest::new(image.parse()?)
    };
    let start = Instant::now();
    let image = library.pull(&request, &Silent)?;
    println!(
        "{} {:.3} s",
        image.rootfs.path.display(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}
