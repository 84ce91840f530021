//! `berth save` and `berth load`: images as files.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bytes::Bytes;
use storage::archive::layout;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::args::Args;
use super::connect::{Command, Known, connect, refused, run};
use super::{login, say};
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::admin::{LoadImagesRequest, SaveImagesRequest};
use crate::server::LARGEST_MESSAGE;

const SAVE: &str = "\
usage: berth save IMAGE... [-o FILE|DIRECTORY/] [--format oci|docker] [--creds USER:PASSWORD | --authfile FILE]

Writes images as one tar to a file or standard output, or as an OCI layout into a directory (a name that ends in /).

  --format oci     every byte as it came, all digests stay (default); `docker load` takes it too. Layers that are not kept
                   (image.keep_blobs) are fetched once more from the registry the image came from.
  --format docker  a docker-archive with plain layers; needs no registry; image ids stay, manifest digests do not
";

const LOAD: &str = "\
usage: berth load [-i FILE|DIRECTORY] [--base NAME]

Takes in the images of an archive from a file, an OCI layout directory or standard input, compressed or not.

  --base NAME      name of images that the archive knows only a tag of
";

/// Bytes sent at a time.
const PIECE: usize = 1 << 20;

pub(super) fn save(args: Args) -> ExitCode {
    let known =
        [Known::Value("-o"), Known::Value("--format"), Known::Value("--creds"), Known::Value("--authfile")];
    run("save", SAVE, args, &known, |command| Box::pin(save_images(command)))
}

pub(super) fn load(args: Args) -> ExitCode {
    let known = [Known::Value("-i"), Known::Value("--base")];
    run("load", LOAD, args, &known, |command| Box::pin(load_images(command)))
}

async fn save_images(command: Command) -> Result<(), String> {
    let images = command.named("an image")?.to_vec();
    let output = command.option("-o").unwrap_or("-");
    if output == "-" && std::io::stdout().is_terminal() {
        return Err("an archive does not belong on a terminal; -o names a file".into());
    }
    let login = login::of(&command, "--creds", "--authfile", &images[0])?;
    let format = command.option("--format").unwrap_or("oci").to_owned();
    let channel = connect(&command.address).await?;
    let mut client = AdminClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
    let request = SaveImagesRequest { images, format, login };
    let mut pieces = client.save_images(request).await.map_err(|s| refused(&s))?.into_inner();
    let mut sink = Sink::open(output)?;
    while let Some(piece) = pieces.message().await.map_err(|s| refused(&s))? {
        sink.write(&piece.data)?;
    }
    sink.finish()
}

/// Where an archive goes.
enum Sink {
    Stdout,
    /// Written aside and renamed, so that a file that is there is whole.
    File(PathBuf, PathBuf, File),
    Directory(Box<layout::Writer>),
}

impl Sink {
    fn open(output: &str) -> Result<Self, String> {
        let path = Path::new(output);
        if output == "-" {
            return Ok(Self::Stdout);
        }
        if output.ends_with('/') || path.is_dir() {
            let writer = layout::Writer::create(path).map_err(|e| super::chain(&e))?;
            return Ok(Self::Directory(Box::new(writer)));
        }
        let mut aside = path.as_os_str().to_owned();
        aside.push(".partial");
        let aside = PathBuf::from(aside);
        let file = File::create(&aside).map_err(|e| format!("{}: {e}", aside.display()))?;
        Ok(Self::File(path.to_owned(), aside, file))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        match self {
            Self::Stdout => std::io::stdout().write_all(bytes).map_err(|e| format!("standard output: {e}")),
            Self::File(path, _, file) => {
                file.write_all(bytes).map_err(|e| format!("{}: {e}", path.display()))
            }
            Self::Directory(writer) => writer.push(bytes).map_err(|e| super::chain(&e)),
        }
    }

    fn finish(self) -> Result<(), String> {
        match self {
            Self::Stdout => std::io::stdout().flush().map_err(|e| format!("standard output: {e}")),
            Self::File(path, aside, file) => {
                let done = file.sync_all().and_then(|()| std::fs::rename(&aside, &path));
                done.map_err(|e| format!("{}: {e}", path.display()))
            }
            Self::Directory(writer) => writer.finish().map_err(|e| super::chain(&e)),
        }
    }
}

async fn load_images(command: Command) -> Result<(), String> {
    if let Some(operand) = command.operands.first() {
        return Err(format!("unexpected argument {operand}; -i names the archive"));
    }
    let input = command.option("-i").unwrap_or("-").to_owned();
    if input == "-" && std::io::stdin().is_terminal() {
        return Err("an archive does not come from a terminal; -i names a file".into());
    }
    let channel = connect(&command.address).await?;
    let (to_send, requests) = mpsc::channel(4);
    let base = command.option("--base").unwrap_or_default().to_owned();
    let first = LoadImagesRequest { base, data: Bytes::new() };
    to_send.send(first).await.map_err(|_| "the daemon went away")?;
    let reading = tokio::task::spawn_blocking(move || read(&input, &to_send));
    let mut client = AdminClient::new(channel);
    let answer = client.load_images(ReceiverStream::new(requests)).await;
    let read = reading.await.map_err(|e| e.to_string())?;
    let loaded = match (answer, read) {
        // What could not be read is the cause of what the daemon says.
        (_, Err(why)) => return Err(why),
        (Err(status), _) => return Err(refused(&status)),
        (Ok(answer), Ok(())) => answer.into_inner().images,
    };
    for image in loaded {
        let tags = if image.tags.is_empty() { "<none>".to_owned() } else { image.tags.join(" ") };
        say(format_args!("loaded {}  {tags}\n", image.id));
    }
    Ok(())
}

/// Reads a file, a directory or standard input into the channel. A daemon that has heard enough is no error here.
fn read(input: &str, to_send: &mpsc::Sender<LoadImagesRequest>) -> Result<(), String> {
    let mut out = Pieces(to_send);
    let failed = |e: std::io::Error| format!("{input}: {e}");
    let result = match input {
        "-" => copy(std::io::stdin().lock(), &mut out),
        path if Path::new(path).is_dir() => layout::read_directory(Path::new(path), &mut out),
        path => File::open(path).and_then(|file| copy(file, &mut out)),
    };
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(failed),
    }
}

fn copy(mut from: impl Read, to: &mut Pieces<'_>) -> std::io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n])?,
        }
    }
}

/// The channel as a file.
struct Pieces<'a>(&'a mpsc::Sender<LoadImagesRequest>);

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        let message = LoadImagesRequest { base: String::new(), data: Bytes::copy_from_slice(piece) };
        self.0.blocking_send(message).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
