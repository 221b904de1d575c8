//! `herald man`: the man pages, made from the same words as the help.

use std::{fs, path::PathBuf};

use anyhow::Context;
use clap::{Args, Command};
use clap_mangen::Man;

use crate::surface::{Format, Output, note, words};

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write a page for each verb into this folder [default: print the page of herald itself]
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

pub fn run(command: Command, args: ManArgs) -> anyhow::Result<()> {
    let Some(folder) = args.folder else {
        let mut page = Vec::new();
        Man::new(command).render(&mut page)?;
        return Output::new(Some(Format::Table)).raw(&page);
    };
    let shown = folder.display();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {shown}"))?;
    let pages = number_of(&command);
    clap_mangen::generate_to(command, &folder).with_context(|| format!("cannot write into {shown}"))?;
    note(format_args!("{} in {shown}", words::count(pages, "page", "pages")));
    Ok(())
}

fn number_of(command: &Command) -> u64 {
    1 + command.get_subcommands().filter(|inner| inner.get_name() != "help").map(number_of).sum::<u64>()
}
