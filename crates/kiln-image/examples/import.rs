//! Makes an image of a source and says how long it took: `import STORE PATH…` (several paths are
//! layers, lowest first).
#![allow(clippy::print_stdout, reason = "a command-line tool for developers")]

use std::time::Instant;

use kiln_image::{ImageSource, ImageStore, LayerSource, Limits, Progress, ProgressEvent};

/// Prints when each step began.
struct Steps(Instant);

impl Progress for Steps {
    fn report(&self, event: ProgressEvent) {
        if !matches!(event, ProgressEvent::Bytes { .. }) {
            println!("{:>12?} {event:?}", self.0.elapsed());
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let store = ImageStore::open(arguments.next().ok_or("no store given")?)?;
    let paths: Vec<_> = arguments.collect();
    let source = match &paths[..] {
        [path] => ImageSource::detect(path)?,
        paths => ImageSource::Layers(paths.iter().map(|p| LayerSource::File(p.into())).collect()),
    };
    let start = Instant::now();
    let image = store.import(source, &Limits::default(), &Steps(start))?;
    println!(
        "{} {:?} {} bytes",
        image.path.display(),
        start.elapsed(),
        image.size_bytes
    );
    Ok(())
}
