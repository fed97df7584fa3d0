export * from "./texts.ts";
