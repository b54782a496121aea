"""What runs a network over images to ask a question of it: dissection, ablation, cues, cue conflict."""
