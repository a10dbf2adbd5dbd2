//! Base images: a list by a plain request, pulls as streams with progress.

use axum::{Extension, Json, Router, extract::State, response::Response, routing::get};
use kiln_api::{
    BaseFile, BaseImage, BasePreset, PullBaseImage, PulledBaseImage, stream::ServerControl,
};

use super::{App, convert};
use crate::http::{
    Connection,
    error::ApiError,
    extract::Upgrade,
    stream::{self, End, Stream},
};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/base-images", get(list))
        .route("/v1/base-images/pull", get(pull))
}

async fn list(State(app): State<App>) -> Result<Json<Vec<BaseImage>>, ApiError> {
    let images = app.host.base_images().await?;
    Ok(Json(images.into_iter().map(shown).collect()))
}

async fn pull(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    Upgrade(upgrade): Upgrade,
) -> Response {
    upgrade.on_upgrade(async move |socket| {
        let mut stream = Stream::new(socket, connection);
        match pull_on(&app, &mut stream).await {
            Ok(pulled) => {
                let told = ServerControl::BaseImage(Box::new(pulled));
                stream.end(Some(told)).await;
            }
            Err(end) => stream.end_with(end).await,
        }
    })
}

async fn pull_on(app: &App, stream: &mut Stream) -> Result<PulledBaseImage, End> {
    let request = stream.request::<PullBaseImage>().await?;
    let request = kiln::EnsureBaseImage {
        preset: preset(request.preset),
        manifest: request.manifest,
        force_download: request.force_download,
    };
    let (progress, events) = stream::progress();
    let ensured = app.host.ensure_base_image(request, progress);
    let ensured = stream.watch(ensured, events).await?;
    Ok(PulledBaseImage {
        image: shown(ensured.image),
        was_cached: ensured.was_cached,
        evicted: ensured.evicted,
    })
}

fn preset(preset: BasePreset) -> kiln::BasePreset {
    match preset {
        BasePreset::Latest => kiln::BasePreset::Latest,
        BasePreset::Lts => kiln::BasePreset::Lts,
        BasePreset::Hosted => kiln::BasePreset::Hosted,
        BasePreset::Debian => kiln::BasePreset::Debian,
    }
}

fn shown(image: kiln::BaseImage) -> BaseImage {
    BaseImage {
        preset: match image.preset {
            kiln::BasePreset::Latest => BasePreset::Latest,
            kiln::BasePreset::Lts => BasePreset::Lts,
            kiln::BasePreset::Hosted => BasePreset::Hosted,
            kiln::BasePreset::Debian => BasePreset::Debian,
        },
        id: image.id,
        arch: image.architecture.name().to_owned(),
        train: image.train,
        firecracker_version: image.firecracker_version,
        directory: image.directory.display().to_string(),
        kernel: file(&image.kernel),
        rootfs: file(&image.rootfs),
        rootfs_type: image.rootfs_type.name().to_owned(),
        rootfs_is_read_only: image.rootfs_is_read_only,
        boot_args: image.boot_args,
        source: image.source,
        created_at_ms: convert::unix_ms(image.created),
        last_accessed_at_ms: convert::unix_ms(image.last_accessed),
    }
}

fn file(file: &kiln::BaseFile) -> BaseFile {
    BaseFile {
        path: file.path.display().to_string(),
        sha256: file.sha256.clone(),
        size_bytes: file.size_bytes,
    }
}
