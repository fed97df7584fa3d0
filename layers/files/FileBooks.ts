/** All of dom0's books, in one directory, which is made when first needed. */
import * as Layer from "effect/Layer";
import { fileChains } from "#layers/files/FileChains";
import { fileKnownServers } from "#layers/files/FileKnownServers";
import { fileLedger } from "#layers/files/FileLedger";
import { fileReadBacks } from "#layers/files/FileReadBacks";
import { fileRunMark } from "#layers/files/FileRunMark";
import { fileSigner } from "#layers/files/FileSigner";
import { stateDirectory } from "#layers/files/StateDirectory";

export const fileBooks = (directory: string) => {
  const state = stateDirectory(directory);
  return Layer.mergeAll(
    fileChains(state),
    fileLedger(state),
    fileKnownServers(state),
    fileReadBacks(state),
    fileRunMark(state),
    fileSigner(state),
  );
};
