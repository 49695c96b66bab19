/** Path of the loadable extension. */
export const library: string;

/** Settings of the VFS, by the names that its URI parameters have; `paths` are the patterns of the files that live in the bucket. */
export type Settings = { bucket?: string; paths?: string; durability?: "background" | "commit" | "strict"; [name: string]: unknown };

/** Makes the VFS known to this process through a connection to any database, and returns the connection. */
export function load<T extends { loadExtension(path: string): unknown }>(connection: T, settings?: Settings): T;
