/** The version of all three programs, as package.json has it. */
export const version = "1.0.0";
