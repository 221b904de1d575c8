//! `herald man`: the man pages, made from the same words as the help.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, Command};
use clap_mangen::Man;

use super::examples;
use crate::surface::{Format, Output, note, words};

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write a page for each verb into this folder [default: print the page of herald itself]
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// Of the command without its examples: a page has a section of them.
pub fn run(command: Command, args: ManArgs) -> anyhow::Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let Some(folder) = args.folder else {
        return Output::new(Some(Format::Table)).raw(&page(&Man::new(command), "")?);
    };
    let shown = folder.display();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {shown}"))?;
    let pages = write_pages(&command, "", &folder).with_context(|| format!("cannot write into {shown}"))?;
    note(format_args!("{} in {shown}", words::count(pages, "page", "pages")));
    Ok(())
}

/// Returns how many it wrote: of the verb and of all below it.
fn write_pages(command: &Command, verb: &str, folder: &Path) -> io::Result<u64> {
    let mut pages = 1;
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        pages += write_pages(inner, format!("{verb} {}", inner.get_name()).trim_start(), folder)?;
    }
    let man = Man::new(command.clone());
    fs::write(folder.join(man.get_filename()), page(&man, verb)?)?;
    Ok(pages)
}

fn page(man: &Man, verb: &str) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render(&mut page)?;
    let examples = examples::of(verb);
    if !examples.is_empty() {
        // They are to be copied: `.nf` leaves each on its line, and no blank is added.
        let lines = examples.join("\n").replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
        page.extend_from_slice(format!(".SH EXAMPLES\n.nf\n{lines}\n.fi\n").as_bytes());
    }
    Ok(page)
}
